"""The learner floor: one rank of the policy's training, as pure tensor code. Ray appears in `worker.py` only.

groups -> advantages.py -> packing.py -> policy.py (attention.py, head.py) -> losses.py -> optimizer.py
                                  `------------------ rank.py: one step of one rank ------------------'
"""
