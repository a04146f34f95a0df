"""Where the guard meets other frameworks; each module is imported only by those who use that framework."""
