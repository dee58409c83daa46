"""What people look at: live progress, tables, summaries, plots."""
