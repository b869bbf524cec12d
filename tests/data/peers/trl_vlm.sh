# GRPO of a model that sees, as a script of TRL starts it.
accelerate launch \
    --config_file zero3.yaml \
    --num_processes 4 \
    train_vlm.py \
    --model_name_or_path Qwen/Qwen2.5-VL-3B-Instruct \
    --dataset_name lmms-lab/multimodal-open-r1-8k-verified \
    --output_dir out \
    --learning_rate 1e-5 \
    --gradient_checkpointing \
    --dtype bfloat16 \
    --max_prompt_length 2048 \
    --max_completion_length 1024 \
    --use_vllm \
    --vllm_mode colocate \
    --use_peft \
    --lora_target_modules "q_proj", "v_proj" \
    --per_device_train_batch_size 8 \
    --gradient_accumulation_steps 2 \
    --num_generations 8 \
    --reward_funcs accuracy_reward think_format_reward \
    --log_completions
