"""Secure aggregation: the server learns the sum of the sites' updates and no single update.

Bonawitz et al., "Practical Secure Aggregation for Privacy-Preserving Machine Learning" (CCS 2017,
https://eprint.iacr.org/2017/281), figure 4: `encoding` makes an update a vector of integers that add up, `masking`
hides it under a mask of its own and one with each other site, `sharing` lets t of n sites remove the masks that a site
leaves behind if it drops out, `offers` signs a site's keys, and `phases` says what travels.

It holds against a server that breaks the protocol, even with t - 1 sites on its side: keys come to sites through the
server, but each is signed by the key that the approved experiment names for its site, so that no server can put its own
in their place. A site that lies can spoil the sum, and nobody sees which one did.
"""
