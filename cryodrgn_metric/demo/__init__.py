"""A molecule whose truth is known: simulated, learned by stock cryoDRGN, embedded, compared."""
