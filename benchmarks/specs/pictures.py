"""The files in a folder of drawn pictures: who draws them and who shows them agree on these names. No torch."""

SHEETS = "sheets.json"
"""{record file: {"sheet": PNG, "prompts", "captions", "width", "height", "psnr"}}, where the PNG holds the pictures of
the captions side by side, or {record file: {"absent": the reason}}."""
SIMILARITY = "similarity.json"
"""{record file: {"model", "scheduler", "steps", "cosine": calls x calls}}."""
