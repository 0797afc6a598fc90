"""NetworkPolicies of Kubernetes, judged once per flow in the tables `podwire-policy` of nftables."""
