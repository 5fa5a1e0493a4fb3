"""What a person sees: the terminal, the pictures, and the page about a study."""
