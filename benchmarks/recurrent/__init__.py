"""What is credit over a window's end worth to a recurrent network?"""
