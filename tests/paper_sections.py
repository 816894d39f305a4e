"""What each section of the paper says, as far as this project cites it.

The table maps a section to its title and to words of its claims. The paper is the second version of
arXiv 2204.14198 (November 2022). `tests/test_citations.py` looks up every citation in code and
documents: the text around it must contain one of the words (regular expressions, in any case).
"""

SECTIONS: dict[str, tuple[str, str]] = {
    "2": ("Approach", r"flamingo|likelihood"),
    "2.1": (
        "Visual processing and the Perceiver Resampler",
        r"resampler|vision encoder|nfnet|time embedding|temporal|interpolat|latents|contrastive|"
        r"frames? per second|1 fps",
    ),
    "2.2": (
        "Conditioning frozen language models on visual representations",
        r"frozen|freez|gate|xattn|cross-attention",
    ),
    "2.3": (
        "Per-image/video attention masking",
        r"own.image|one image|single image|mask|attend|every other image|picture",
    ),
    "2.4": (
        "Training on a mixture of vision and language datasets",
        r"<eoc>|mixture|lambda|weight|accumulat|256 tokens|5 images|m3w|likelihood|captioning|"
        r"next token|datasets|pages?\b",
    ),
    "2.5": ("Task adaptation with few-shot in-context learning", r"few-shot|prompt|beam"),
    "3.1": ("Few-shot learning on vision-language tasks", r"few-shot|fine-tuned|zero-shot"),
    "3.2": ("Fine-tuning Flamingo as a pretrained vision-language model", r"fine-tun"),
    "3.3": ("Ablation studies", r"ablation|overall"),
    "A.1.1": ("Perceiver Resampler", r"resampler"),
    "A.1.2": ("GATED XATTN-DENSE details", r"gate|gated|xattn"),
    "A.1.3": ("Multi-visual input support", r"phi|own.image|mask|attend|image"),
    "A.1.4": ("Transformer architecture", r"head size|key|squared relu|relu|gelu|4d|width"),
    "A.2": (
        "In-context few-shot evaluation details",
        r"support|rices|retriev|most similar|ensembl|permut|order|log-likelihood|ranked|ranking|"
        r"candidate|beam|zero-shot|0 shots|text-only|text alone|without images|in reading order|"
        r"<eoc>|few-shot|prompt",
    ),
    "A.3": ("Training dataset details", r"page|pair|video"),
    "A.3.1": (
        "M3W collection",
        r"m3w|crawl|web ?page|document order|html|64 pixels|aspect|one colou?r|filter|gopher|"
        r"explicit|pictures of a page",
    ),
    "A.3.2": ("M3W image-placement augmentation", r"p_next|next image|image.placement"),
    "A.3.3": (
        "LTIP and VTP: visual data paired with text",
        r"ltip|vtp|pairs?|syntax|<bos>|captions?",
    ),
    "A.3.4": ("Dataset deduplication against evaluation tasks", r"dedup|duplicate|taken out"),
    "B.1": ("Training and evaluation details", r"table|paper|values"),
    "B.1.1": ("Models", r"3b|9b|80b|sizes?|parameters|weights"),
    "B.1.2": (
        "Training details for the Flamingo models",
        r"\bpad|flip|colou?r|clips?\b|8 frames|30 frames|3 fps|3 per second|at 1 fps|space|320|"
        r"resolution|adamw|warm-up|schedule|clip|decay|lambda|learning rate|rate|batch sizes|"
        r"more frames|megatron|sharding|shard|zero-1|bfloat16|float32|16-way|mesh|1536|chips|"
        r"took 15|15 days|500,000|stacked|dtype",
    ),
    "B.1.3": (
        "Contrastive model details",
        r"contrastive|infonce|two-term|bert|adaptive|agc|clipp|512|288|label smoothing|sentences|"
        r"class|zero-shot|cosines|batch|align|vision encoder",
    ),
    "B.1.4": (
        "Evaluation benchmarks",
        r"split|support|queries|query|benchmark|2048|metric|examples|protocol",
    ),
    "B.1.5": (
        "Few-shot learning evaluation hyperparameters",
        r"template|prompt|one setting|hyperparameter|beams?|protocol|visdial|visual dialogue|"
        r"no ocr",
    ),
    "B.1.6": ("Dialogue prompt", r"dialogue"),
    "B.2.1": (
        "Flamingo on ImageNet and Kinetics700",
        r"rices|imagenet|kinetics|classification|5 of each class",
    ),
    "B.2.2": ("Fine-tuning Flamingo", r"fine-tun|480|vision encoder"),
    "B.2.3": ("Zero-shot performance of the contrastive model", r"zero-shot|retrieval"),
    "B.3.1": ("Flamingo ablation studies", r"ablation|batch"),
    "B.3.2": (
        "Dataset mixing strategies for the contrastive pretraining",
        r"contrastive|ablation|share|bert",
    ),
    "D.2.2": ("Risks and mitigation strategies", r"caption|bias|toxic|groups?\b"),
    "E": ("Model card", r"sentencepiece|vocabulary|mean and variance"),
}

# Topic -> the sections that treat it. If the line of a citation matches the topic (a regular
# expression), it must cite one of these sections.
TOPICS: dict[str, tuple[str, ...]] = {
    r"\bpadd(ed|ing) with the mean|padded with the mean": ("B.1.2",),
    r"flip|colou?r augmentation": ("B.1.2",),
    r"clips? of (8|eight) frames|clips of videos|8 frames at 1 fps": ("B.1.2", "2.1"),
    r"30 frames|3 per second|3 fps|8 frames -> 30": ("B.1.2",),
    r"space in front|space prefix|space_prefix": ("B.1.2",),
    r"\brices\b": ("A.2", "B.2.1"),
    r"ensembl\w+ (of|over) (orders|permutations)|averages? over orders|random permutations": (
        "A.2",
    ),
    r"rank\w* by (its |their )?log-likelihood|highest log-likelihood": ("A.2",),
    r"pair syntax|pairs, the (tokens|syntax)": ("A.3.3",),
    r"deduplicat": ("A.3.4",),
    r"p_next": ("A.3.2", "B.1.2", "B.3.1"),
    r"warm-up": ("B.1.2",),
    r"text-only examples|examples are left out": ("A.2",),
    r"\b3 beams|beam search of width 3": ("A.2",),
    r"<eoc>.{0,12}paper": ("2.4", "A.2"),
    r"table 3.{0,8}\(i\).*accumul|accumul.*table 3.{0,8}\(i\)": (),  # it is row (ii)
    r"zero-1": ("B.1.2",),
    r"megatron": ("B.1.2",),
}
