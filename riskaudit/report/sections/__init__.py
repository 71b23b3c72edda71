"""The report's sections: one file each, every one a pure function of the audit's facts."""
