"""What a recipe needs that is not on this machine."""

from vqbank.pipelines.recipe import Recipe


def missing_weights(recipe: Recipe) -> list[str]:
    """Weights of its extractors that are not at hand, as `vqbank weights fetch` takes them.

    Of a backbone that is not the usual one its model, without looking: its library is imported to
    know the file.
    """
    from vqbank.extractors import make_extractor
    from vqbank.extractors.base import WeightedExtractor
    from vqbank.extractors.weights import locate

    missing = []
    for entry, parameters in recipe.extractors.items():
        own = dict(parameters)
        kind = str(own.pop("extractor", entry))
        if kind == "backbone" and "model" in own:
            missing.append(f"{kind} of {own['model']}")
            continue
        extractor = make_extractor(kind, **own)
        if not isinstance(extractor, WeightedExtractor) or extractor.is_random:
            continue
        if locate(extractor.file) is None:
            missing.append(f"{kind}={extractor.file.choice}")
    return list(dict.fromkeys(missing))
