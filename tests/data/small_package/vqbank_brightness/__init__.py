"""An extractor and a head that are not vqbank's."""
