"""What builders of starting models use: small models of real architectures, and the building blocks of demos.

A built model is kept for the next run until a file of this package or the module of its builder changes, see
`mmrl_core.starting_model`. So whatever a builder takes from the core lies here, and nothing else does.
"""
