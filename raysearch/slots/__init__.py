"""Warm slots: Ray Train workers that outlive one recipe.

Starting a TorchTrainer per trial costs tens of seconds of processes and imports. A slot pays that once: its workers
load the dense model and the data, then take one recipe after another. Tune's trials are thin: they pass a command to
their slot and hand its reply to the scheduler. Commands and replies travel over one asynchronous actor, the board.
"""
