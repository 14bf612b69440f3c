"""Many runs side by side: tables, figures and pages, made from what run folders hold; nothing here imports torch."""
