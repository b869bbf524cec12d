"""Sizes of the tiny models; a test may patch them, so they are read as `sizes.NAME`."""

IMAGE_FACTOR_PX = 28  # patch size 14 x spatial merge 2: one language-model token covers 28 x 28 pixels
HIDDEN_SIZE = 64
NUM_LAYERS = 2
NUM_HEADS = 4
HEAD_DIM = HIDDEN_SIZE // NUM_HEADS
INIT_STD = 0.02
AUDIO_WINDOW_S = 4  # the published model's is 30; audio is padded to it, and what is longer does not fit
AUDIO_TOKENS_PER_S = 25  # 100 frames a second, halved by a convolution and again by pooling
NUM_MEL_BINS = 32
SLIDING_WINDOW = 24  # tokens; shorter than most prompts
ATTENTION_SOFTCAP = 0.5  # as large as the attention logits of a random model; published: 50
LOGIT_SOFTCAP = 1.0  # published: 30
