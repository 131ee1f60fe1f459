"""Agents at work: messages, answers, and who learns when."""
