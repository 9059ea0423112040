"""Locomotion on MuJoCo, batched: Gymnasium's v5 robots with a task to each slot. Needs the extra `[mujoco]`.

For the same state and actions a step equals that of Gymnasium's v5 environment. What those compute from external contact
forces is left out, as their own switches do (`contact_cost_weight=0`, `include_cfrc_ext_in_observation=False`): it would
take another pass over the contacts of every slot. MuJoCo's versions differ in contacts, so results hold for one version.
"""
