"""Who may call the API: keys, tokens, scopes, rate limits."""
