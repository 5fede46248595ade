"""Score distillation, the subject of KAIST CS492D: its rules, and the loop that follows them."""
