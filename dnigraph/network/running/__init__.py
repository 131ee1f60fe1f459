"""Agents at work: messages, answers, and when each agent learns."""
