"""The agents of all namespaces: what they announced, whether they get work, who lives."""
