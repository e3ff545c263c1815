"""Everything automatic that rates, tags or embeds audio: CLAPs, taggers, PANNs, VGGish."""
