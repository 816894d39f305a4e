#!/usr/bin/env bash
# Fine-tunes a small Flamingo on easy-VQA, 48,248 questions about small pictures that no one here
# made: records, towers from nothing on its own pictures and texts, a Flamingo, and fine-tuning.
#
#   launch/easy_vqa.sh                       installs the package easy-vqa below runs/easy_vqa
#   launch/easy_vqa.sh --data=DIR            takes the folder data of the package
#   launch/easy_vqa.sh --output=DIR --config.seed=2     another directory, any field of
#                                            configs/easy_vqa.py, for all stages
#   launch/easy_vqa.sh --size=smoke          few updates, to check that all parts run
#
# Started again, it continues: what is made is left as it is, and an interrupted stage resumes. It
# reports test accuracy few-shot and fine-tuned, and the processor time of all programs.
set -euo pipefail

# shellcheck source=launch/options.sh
source "$(dirname "${BASH_SOURCE[0]}")/options.sh"

output=runs/easy_vqa
data=
size=full
overrides=()
for argument in "$@"; do
  case "$argument" in
    --output=?*) output="$(path_of "$argument")" ;;
    --data=?*) data="$(path_of "$argument")" ;;
    --size=full | --size=smoke) size="${argument#*=}" ;;
    --config.?*=*) overrides+=("$argument") ;;
    -h | --help) usage; exit ;;
    *) unknown_option "$argument" ;;
  esac
done

# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
output="${output#"$PWD"/}"
started=$SECONDS
export MPLBACKEND=Agg

stage_options=()
few_shot=("--shots=0,4" --config.n=1000)
fine_tuned=(--shots=0 --config.n=0 --config.text_examples=0)
if [ "$size" = smoke ]; then
  stage_options=(--config.steps=4 --config.hooks.log_every=2 --config.hooks.save_every=4)
  few_shot=("--shots=0,2" --config.n=4)
  few_shot+=(--config.num_support=4)
  fine_tuned=(--shots=0 --config.n=4 --config.text_examples=0)
fi

# Makes records of the training split. $1: the form; the rest: options.
records() {
  local form="$1"
  shift
  "$PYTHON" -m data_pipelines.run --pipeline=benchmark --task=easy_vqa --input="$data" \
    --form="$form" --output="$output/records/$form" --novalidation "$@" \
    || stopped $? "making the $form"
}

# Trains a stage. $1: the stage; the rest: its options.
stage() {
  local name="$1"
  shift
  say "== $name"
  "$PYTHON" -m flamingo_jax.train --config="configs/easy_vqa.py:$name" \
    --workdir="$output/$name" --config.data.tokenizer="$output/tokenizer" "$@" \
    ${stage_options[@]+"${stage_options[@]}"} ${overrides[@]+"${overrides[@]}"} \
    || stopped $? "the stage $name"
}

# Asks test questions. $1: the stage; the rest: options.
evaluate() {
  local name="$1"
  shift
  "$PYTHON" -m flamingo_jax.evaluate --config=configs/evaluate.py --task=easy_vqa \
    --checkpoint="$output/$name" --output="$output/report/$name" --config.data.easy_vqa="$data" \
    --config.inference.max_new_tokens=4 "$@" || stopped $? "the evaluation of $name"
}

keep_options "$output" "a run" "size=$size ${overrides[*]+"${overrides[*]}"}"
if [ -z "$data" ]; then
  data="$output/package/easy_vqa/data"
  if [ ! -e "$data/test/questions.json" ]; then
    say "== the package easy-vqa"
    "$PYTHON" -m pip install --quiet --disable-pip-version-check --no-deps \
      --target="$output/package" easy-vqa==1.0 \
      || die "pip cannot install easy-vqa (is there a network?): give its folder, --data=DIRECTORY"
  fi
fi

say "== records"
records answers
records captions --leave_out=yes,no
records documents
records pages
"$PYTHON" -m data_pipelines.run --pipeline=tokenizer --model_type=word \
  --input="$output/records/documents" --output="$output/tokenizer" \
  || stopped $? "making the tokenizer"

stage contrastive --config.data.datasets.captions.path="$output/records/captions"
stage language_model --config.data.datasets.documents.path="$output/records/documents"
stage flamingo --config.data.datasets.pages.path="$output/records/pages" \
  --config.data.datasets.answers.path="$output/records/answers" \
  --config.towers.lm="$output/language_model/export" \
  --config.towers.vision="$output/contrastive/export"
stage finetune --config.data.datasets.answers.path="$output/records/answers" \
  --config.initial="$output/flamingo"

say "== test"
evaluate flamingo "${few_shot[@]}"
evaluate finetune "${fine_tuned[@]}"
printf '\nthis run: %d s after installation; the reports are in %s\n' \
  $((SECONDS - started)) "$output/report"
# In a pipe or $(...) `times` would report a new shell, which has run nothing.
times >"$output/processor_time"
printf 'processor time of the programs (user, system): %s\n' "$(tail -n 1 "$output/processor_time")"
