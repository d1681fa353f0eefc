"""What isolation costs, against what people use instead. Run by ``./dev bench``."""
