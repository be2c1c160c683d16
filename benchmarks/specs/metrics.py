"""The metrics. No torch."""

from __future__ import annotations

from collections.abc import Collection, Sequence

AMONG = 100  # captions among which retrieval ranks a picture's own
NETWORKS = ("efflite0", "clean", "paper")  # whose features sets of pictures are compared by
PER_PICTURE = ("clip_score", "class_score", "psnr", "ssim", "retrieval_top1", "class_top1")


JUDGED = ("clip_score", "class_score", "retrieval_top1", "class_top1")


SHARES = ("retrieval_top1", "class_top1")  # hits or misses, of which only the share is recorded


DISTANCES = ("fid", "kid")


REFERENCED = tuple(f"{distance}_{protocol}" for distance in DISTANCES for protocol in NETWORKS)


QUALITY = (*PER_PICTURE, *REFERENCED)
METRICS = ("macs", "latency", "search", *QUALITY)


LEAST = {"fid": 2, "kid": 4, "retrieval": AMONG}  # KID's interval halves its pictures


def too_few(metric: str, captions: Sequence[str]) -> str:
    """Why a metric cannot be worked out on the pictures of so few captions; empty where it can."""
    least = LEAST.get(metric.partition("_")[0], 1)
    count, what = (len(set(captions)), "different captions") if metric in SHARES else (len(captions), "pictures")
    return f"takes {least} {what} or more, not {count}; raise the limit" if count < least else ""


def needs_judge(metrics: Collection[str]) -> bool:
    return not set(JUDGED).isdisjoint(metrics)
