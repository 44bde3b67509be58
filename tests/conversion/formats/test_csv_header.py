import pytest

from retinanet_tpu.conversion.formats import csv_header


def read(line):
    return csv_header.read(line.split(","), "t.csv")


def picked(line):
    """Returns the name of the header's column for each meaning."""
    names = line.split(",")
    return {key: names[place] for key, place in read(line).columns.items()}


@pytest.mark.parametrize(
    ("line", "names"),
    [
        ("filename,width,height,class,xmin,ymin,xmax,ymax",
         "filename class xmin ymin xmax ymax width height"),
        ("image_name,x_min,y_min,x_max,y_max,class_name",
         "image_name class_name x_min y_min x_max y_max"),
        ("image_id,xmin,ymin,xmax,ymax,label", "image_id label xmin ymin xmax ymax"),
        ("Frame,Left,Top,Right,Bottom,Class ID",
         "Frame Class ID Left Top Right Bottom"),
        ("Path,X1,Y1,X2,Y2,Class Name", "Path Class Name X1 Y1 X2 Y2"),
        ("id,file_name,category_id,category,xmin,ymin,xmax,ymax,image_id",
         "file_name category xmin ymin xmax ymax"),
        ("image-path,x.min,y.min,x.max,y.max,label", "image-path label x.min y.min "
         "x.max y.max"),
        # The size of the box has another name than that of the image, or the image has
        # none.
        ("image,x,y,w,h,label,width,height", "image label x y w h width height"),
        ("image,x,y,width,height,label", "image label x y width height"),
        ("image,xmin,ymin,width,height,label,image_width,image_height",
         "image label xmin ymin width height image_width image_height"),
        ("label_name,bbox_x,bbox_y,bbox_width,bbox_height,image_name,image_width,"
         "image_height", "image_name label_name bbox_x bbox_y bbox_width bbox_height "
         "image_width image_height"),
        ("image,xmin,ymin,xmax,ymax,label,width,height,image_width,image_height",
         "image label xmin ymin xmax ymax image_width image_height"),
    ],
)  # fmt: skip
def test_columns_are_identified_by_many_names(line, names):
    assert " ".join(picked(line).values()) == names
    assert read(line).has_header_line


@pytest.mark.parametrize(
    ("line", "meanings"),
    [
        ("a.jpg,1,2,3,4,cat", "image xmin ymin xmax ymax class"),
        ("a.jpg,,,,,", "image xmin ymin xmax ymax class"),
        ("cat,1,2,3,4,a.jpg,20,30", "class xmin ymin box_width box_height image width "
         "height"),
    ],
)  # fmt: skip
def test_two_layouts_need_no_header(line, meanings):
    header = read(line)
    assert " ".join(header.columns) == meanings
    assert list(header.columns.values()) == [*range(len(header.columns))]
    assert not header.has_header_line


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("image,xmin,ymin,xmax,ymax", "lacks class"),
        ("xmin,ymin,xmax,ymax,class", "lacks image"),
        ("image,xmin,ymin,xmax,class", "lacks ymax"),
        ("image,x,y,class", "lacks xmin, ymin, xmax, ymax"),
        ("image,x,y,width,class", "lacks xmin, ymin, xmax, ymax"),
        ("image,xmin,ymin,xmax,width,height,class", "lacks ymax"),
        ("image,xmin,ymin,xmax,ymax,class,label", "class and label could each be the "
         "class"),
        ("image,xmin,x1,ymin,xmax,ymax,class", "xmin and x1 could each be the xmin"),
        ("image,x,left,y,width,height,class", "left and x could each be the xmin"),
        ("image,xmin,ymin,xmax,ymax,class,class", "has class twice"),
        ("image,x1,y1,x2,y2,x3,y3,x4,y4,class", "x3 and y3 are points of a polygon"),
        ("image,cx,cy,width,height,class", "cx and cy are centers of boxes"),
        ("image,x_center,y_center,w,h,class", "x_center and y_center are centers"),
        ("a.jpg,1,2,3,4", "lacks image"),
        ("cat,1,2,3,4,dog,20,30", "lacks image"),
        ("", "lacks image"),
    ],
)  # fmt: skip
def test_an_ambiguous_or_incomplete_header_is_an_error(line, message):
    with pytest.raises(ValueError, match=rf"t\.csv, line 1 is .*{message}"):
        read(line)
