"""vqbank: bank frozen video-quality features once; train, ablate and ship light heads from it."""
