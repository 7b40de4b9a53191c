"""Do the metrics find what is planted?"""
