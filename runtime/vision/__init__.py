"""Pictures and videos: from files to patches and positions, and the graph that makes rows of embeddings of them."""
