"""The names of the forms in which contours are written; loads nothing, for the command line."""

CONTOUR_FORMATS = ("nrrd", "nifti", "segnrrd", "rtstruct", "dicomseg")
DICOM_FORMATS = ("rtstruct", "dicomseg")  # those that refer to the CT's own DICOM files
