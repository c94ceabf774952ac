"""Launchers of launch.train on TPU pods and GPU clusters."""
