"""How Keras layers that convert wrongly, or badly, are traced instead: the registry, and its rules."""
