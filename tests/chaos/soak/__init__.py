"""The soak (``make chaos``): random deaths under load for as long as you like, while an audit looks for what was lost or doubled."""
