"""The four methods on a real task at equal budgets: what each reaches, what it costs, where AdaLoRA puts its ranks."""
