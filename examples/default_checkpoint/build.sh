#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Trains the default checkpoint from nothing. What is done is not done again, and a step that was ended goes on where it can.
#
#   examples/default_checkpoint/build.sh WORK TOKENIZER
#
# WORK is a folder for everything (3 GB), TOKENIZER one with a LLaMA tokenizer, whose pipeline is kept. It takes hours on two cores.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
work=$1 tokenizer=$2
mkdir -p "$work"
cd "$here"

step() { # name, command …: once
    [ -e "$work/$1.done" ] && return
    echo "== $1: $(date +%T)"
    local start=$SECONDS
    "${@:2}"
    echo "$((SECONDS - start)) s" >"$work/$1.done"
}

train() { # name of a recipe and its data, other options …
    step "$1" videollama train --recipe "small_${1%_2}" --model "$work/encoders" --data "messages=$work/data/$1.jsonl,media=$work/clips" \
        --output_dir "$work/$1" --feature_cache "$work/features" --resume_from_checkpoint auto "${@:2}"
}

step base python make_model.py --out "$work/base" --tokenizer "$tokenizer"
# LLaMA, and what sees and hears, know nothing of each other yet: each has a core of its own
(
    export OMP_NUM_THREADS=1
    (
        step text python pretrain_llama.py --model "$work/base" --out "$work/text" --steps 2200 --gate 0.85
        step text_2 python pretrain_llama.py --model "$work/text" --out "$work/text_2" --steps 500 --learning-rate 1e-3 --seed 1 \
            --gate 0.9 --hard count place side "is seen: yes" "is seen: no" "is heard: yes" "is heard: no" "match: yes" "match: no"
    ) &
    (
        step vit python train_vision.py --part vit --model "$work/base" --out "$work/vit" --steps 6000 --batch-size 24
        step vit_2 python train_vision.py --part vit --second-round --model "$work/vit" --out "$work/vit_2" --steps 3000 \
            --batch-size 24 --learning-rate 8e-4
        step vit_3 python train_vision.py --part vit --second-round --places --model "$work/vit_2" --out "$work/vit_3" --steps 1500 \
            --batch-size 24 --learning-rate 6e-4
        step imagebind python train_vision.py --part imagebind --model "$work/vit_3" --out "$work/imagebind" --steps 1500 \
            --batch-size 24
        step audio python train_audio.py --model "$work/imagebind" --out "$work/audio" --bank "$work/sounds" --steps 2000 \
            --batch-size 32
        step clips python clips.py --out "$work/clips" --num-clips 24000 --split train --no-sound
    ) &
    # Fails if one of the two did
    wait -n && wait -n
)
step encoders python train_vision.py --part qformer --model "$work/text_2" --trunks "$work/audio" --out "$work/encoders" \
    --steps 2500 --batch-size 32
step data python stage_data.py --clips "$work/clips" --out "$work/data"
step features videollama cache-features --model "$work/encoders" --out "$work/features" --branch both --audio-from frames \
    --data "messages=$work/data/joint.jsonl,media=$work/clips" --data "messages=$work/data/vl_stage1.jsonl,media=$work/clips" \
    --batch-size 32
train vl_stage1
train vl_stage2 --init_branches "$work/vl_stage1"
train al_stage1
train al_stage2 --init_branches "$work/al_stage1"
train joint --init_branches "$work/vl_stage2" "$work/al_stage2"
train joint_2 --init_branches "$work/joint" --seed 43 --max_steps 2500
step export python export.py --model "$work/encoders" --branches "$work/joint_2" --out "$work/default"
