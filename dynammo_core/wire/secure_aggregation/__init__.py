"""Secure aggregation: the server learns the sum of the sites' updates and none of its terms.

Bonawitz et al., "Practical Secure Aggregation for Privacy-Preserving Machine Learning" (CCS 2017,
https://eprint.iacr.org/2017/281), figure 4 without signatures: `encoding` makes an update a vector of integers that add
up, `masking` hides it under a mask of its own and one with each other site, `sharing` lets t of n sites take away what
the dropping out of a site would leave.

It holds against a server that follows the protocol and is curious, even with t - 1 sites on its side. Keys come to
sites through the server, unsigned: a server that breaks the protocol can put keys of its own in their place, be all
the other sites to one site, and read that site's update. Signatures by the keys that sites are registered with would
stop it. A site that lies can spoil the sum, and nobody sees which one did.
"""
