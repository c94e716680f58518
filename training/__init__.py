"""Data and a recipe in, a registered and immutable model version out."""
