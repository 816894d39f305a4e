#!/usr/bin/env bash
# Trains the tiny Flamingo with language models of three sizes, in one world and with one vision
# encoder, and draws what each takes from the examples of a prompt (paper, Figure 2, right).
#
#   launch/model_sizes.sh                        small, base and large, seed 1; runs/model_sizes
#   launch/model_sizes.sh --seeds=1,2            with several seeds, of which the means are drawn
#   launch/model_sizes.sh --models=small,base    some of them
#   launch/model_sizes.sh --output=DIR --config.data.prefetch=2    any field, for all stages
#   launch/model_sizes.sh --size=smoke           a small world and few updates, to check that all
#                                                parts run
#
# Each model is a run of launch/demo.sh in OUTPUT/seedN/MODEL; the first one makes what all share.
# All language models are trained for the same updates: the demo's ends when it passes its probe.
# Started again, it continues: stages with an export are skipped.
set -euo pipefail

# shellcheck source=launch/options.sh
source "$(dirname "${BASH_SOURCE[0]}")/options.sh"

output=runs/model_sizes
size=demo
seeds=1
models=small,base,large
overrides=()
for argument in "$@"; do
  case "$argument" in
    --output=?*) output="$(path_of "$argument")" ;;
    --size=demo | --size=smoke) size="${argument#*=}" ;;
    --seeds=[0-9]*) seeds="${argument#*=}" ;;
    --models=?*) models="${argument#*=}" ;;
    --config.seed=*) no_single_seed ;;
    --config.?*=*) overrides+=("$argument") ;;
    -h | --help) usage; exit ;;
    *) unknown_option "$argument" ;;
  esac
done

# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
output="${output#"$PWD"/}"
no_comma "$output"
export MPLBACKEND=Agg

IFS=, read -r -a seeds <<<"$seeds"
IFS=, read -r -a models <<<"$models"
for model in "${models[@]}"; do
  [[ " small base large " == *" $model "* ]] || die "there is no model $model; expected small," \
    "base, large"
done
check_seeds "${seeds[@]}"
each_once --models "${models[@]}"

lm_updates=800 # then the learning rate of configs/tiny.py has fallen to its last value
[ "$size" = demo ] || lm_updates=40

reports=
for seed in "${seeds[@]}"; do
  shared=() # the world, the tokenizer and the vision encoder
  for model in "${models[@]}"; do
    say "== $model, seed $seed"
    work="$output/seed$seed/$model" status=0
    launch/demo.sh --model="$model" --size="$size" --output="$work" --config.seed="$seed" \
      --lm_updates="$lm_updates" \
      ${shared[@]+"${shared[@]}"} ${overrides[@]+"${overrides[@]}"} || status=$?
    stop_if_asked "$status" "$model, seed $seed,"
    [ "$status" = 0 ] || die "$model, seed $seed, was not made (the reason is above)"
    [ -n "${shared[*]-}" ] || shared=("--from=$work")
    reports="$reports,$model=$work/report"
  done
done
"$PYTHON" -m flamingo_jax.evaluate --report="SIZES$reports" --output="$output/report"
