"""The human study (paper, section 4.4): a draw of pairs, a page where raters vote, and Table 2."""
