#!/usr/bin/env bash
# Trains a small Flamingo on emoji, and asks it to name drawings that it has never seen: the npm
# packages, records, a vision encoder and a language model from nothing, a Flamingo, and a report.
#
#   launch/emoji.sh                          gets the packages with npm; writes runs/emoji
#   launch/emoji.sh --packages=DIR           takes a folder node_modules that has them
#   launch/emoji.sh --third                  also gets openmoji, a style that is never trained
#   launch/emoji.sh --output=DIR --config.seed=2    another directory, any field of
#                                            configs/emoji.py, for all stages
#   launch/emoji.sh --size=smoke             few records and updates, to check that all parts run
#   launch/emoji.sh --size=gpu               a larger model and more records, for ten minutes of one
#                                            GPU
#
# The pictures have licences of their own: Noto Emoji is under Apache 2.0, Twemoji under CC-BY 4.0,
# OpenMoji under CC BY-SA 4.0 (OUTPUT/records/LICENCES.md).
# Started again, it continues: what is made is left as it is, and an interrupted stage resumes.
set -euo pipefail

# shellcheck source=launch/options.sh
source "$(dirname "${BASH_SOURCE[0]}")/options.sh"

output=runs/emoji
packages=
third=no
size=full
seed=1
overrides=()
for argument in "$@"; do
  case "$argument" in
    --output=?*) output="$(path_of "$argument")" ;;
    --packages=?*) packages="$(path_of "$argument")" ;;
    --third) third=yes ;;
    --size=full | --size=smoke | --size=gpu) size="${argument#*=}" ;;
    --config.seed=?*) seed="${argument#*=}" ;;
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

# The versions that the numbers in launch/README.md were measured with, and the hashes of npm.
sources=(emoji-datasource-google@16.0.0 emoji-datasource-twitter@16.0.0)
[ "$third" = no ] || sources+=(openmoji@17.0.0)

options=()
records=(--size="$size")
config_size=
shots=0,1,2,4,8,16
tasks=emoji_name,emoji_bind2,emoji_bind5,emoji_category
tasks=$tasks,emoji_bind2_shuffled,emoji_bind2_hidden,emoji_bind5_shuffled,emoji_bind5_hidden
tasks=$tasks,emoji_category_shuffled,emoji_category_hidden
[ "$third" = no ] || tasks=$tasks,emoji_name_third
evaluation=(--config.n=1000)
if [ "$size" = smoke ]; then
  options=(--config.steps=4 --config.hooks.log_every=2 --config.hooks.save_every=4)
  shots=0,2
  evaluation=(--config.n=8)
fi
if [ "$size" = gpu ]; then
  records+=(--image_size=48)
  config_size=gpu,
fi

# Trains a stage. $1: the stage; the rest: its options.
stage() {
  local name="$1"
  shift
  say "== $name"
  "$PYTHON" -m flamingo_jax.train --config="configs/emoji.py:$config_size$name" \
    --workdir="$output/$name" \
    --config.seed="$seed" --config.data.tokenizer="$output/tokenizer" \
    --config.evaluate.data.emoji="$output/records" "$@" \
    ${options[@]+"${options[@]}"} ${overrides[@]+"${overrides[@]}"} \
    || stopped $? "the stage $name"
}

if [ "$third" = yes ] && [ -n "$packages" ] && [ ! -d "$packages/openmoji/color/svg" ]; then
  die "--third needs the package openmoji, but $packages/openmoji/color/svg is missing. Add it, or" \
    "leave out --third"
fi
keep_options "$output" "a run" \
  "size=$size third=$third seed=$seed ${overrides[*]+"${overrides[*]}"}"
if [ -z "$packages" ]; then
  packages="$output/packages/node_modules"
  for source in "${sources[@]}"; do
    if [ ! -e "$packages/${source%@*}/package.json" ]; then
      command -v npm >/dev/null 2>&1 \
        || die "npm is needed to get $source. Install it (on Debian: apt-get install npm), or give" \
          "a folder with the packages, --packages=DIRECTORY"
      say "== ${sources[*]}"
      # All at once, since npm removes what it was not asked for. It compares each package with the
      # hash that its registry has for this version.
      npm install --silent --no-save --ignore-scripts --no-audit --no-fund \
        --prefix "$output/packages" "${sources[@]}" \
        || die "npm cannot install ${sources[*]} (is there a network?): give the folder," \
          "--packages=DIRECTORY"
      break
    fi
  done
fi

say "== records"
"$PYTHON" -m data_pipelines.run --pipeline=emoji --input="$packages" --output="$output/records" \
  --seed="$seed" "${records[@]}" || stopped $? "making the records"
"$PYTHON" -m data_pipelines.run --pipeline=tokenizer --model_type=word \
  --input="$output/records/text,$output/records/captions" --output="$output/tokenizer" \
  || stopped $? "making the tokenizer"

stage contrastive --config.data.datasets.captions.path="$output/records/captions"
stage language_model --config.data.datasets.text.path="$output/records/text"
stage flamingo --config.data.datasets.pages.path="$output/records/pages" \
  --config.data.datasets.pairs.path="$output/records/pairs" \
  --config.towers.lm="$output/language_model/export" \
  --config.towers.vision="$output/contrastive/export"

say "== report"
"$PYTHON" -m flamingo_jax.evaluate --config=configs/evaluate.py --checkpoint="$output/flamingo" \
  --output="$output/report" --config.data.emoji="$output/records" --config.seed="$seed" \
  --task="$tasks" --shots="$shots" "${evaluation[@]}" || stopped $? "the evaluation"
printf '\nthis run: %d s after installation; the report is in %s\n' \
  $((SECONDS - started)) "$output/report"
