PEERS = lambda name: {}
