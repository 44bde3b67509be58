import pytest

import annotation_files
import tool_exports
from retinanet_tpu.conversion.formats import cvat

BOX = '<box label="cat" xtl="10" ytl="5" xbr="50" ybr="35"/>'


def read(tmp_path, text, names=("a.jpg",), **options):
    for name in names:
        annotation_files.draw(
            tmp_path, [annotation_files.SampleImage(name, 64, 64, ())]
        )
    path = tmp_path / "annotations.xml"
    path.write_text(text)
    image_folder = annotation_files.image_folder(tmp_path)
    return cvat.read(str(path), image_folder=image_folder, **options)


def in_image(*shapes):
    image = '<image id="0" name="a.jpg" width="64" height="64">{}</image>'
    return f"<annotations>{image.format(''.join(shapes))}</annotations>"


def track(*frames, label="cat"):
    """Returns a track of a box in frames: number, and whether it is outside."""
    place = 'xtl="{0}" ytl="5" xbr="50" ybr="35"'
    boxes = [
        f'<box frame="{n}" outside="{int(o)}" keyframe="1" {place.format(n)}/>'
        for n, o in frames
    ]
    return f'<track id="0" label="{label}">{"".join(boxes)}</track>'


def of_video(*tracks):
    return f"<annotations>{''.join(tracks)}</annotations>"


def frame_names(count):
    return [f"frame_{number:06d}.png" for number in range(count)]


@pytest.mark.parametrize(
    ("shape", "box"),
    [
        ('polygon label="cat" points="1.5,2;9,3;5,8"', (1.5, 2, 7.5, 6)),
        ('ellipse label="cat" cx="30" cy="20" rx="10" ry="5"', (20, 15, 20, 10)),
        (
            'ellipse label="cat" cx="30" cy="20" rx="10" ry="5" rotation="90"',
            (25, 10, 10, 20),
        ),
        (
            'box label="cat" xtl="10" ytl="10" xbr="50" ybr="30" rotation="90"',
            (20, 0, 20, 40),
        ),
        (
            'box label="cat" xtl="0" ytl="0" xbr="10" ybr="10" rotation="45"',
            (5 - 50**0.5, 5 - 50**0.5, 2 * 50**0.5, 2 * 50**0.5),
        ),
        ('mask label="cat" left="3" top="4" width="5" height="6"', (3, 4, 5, 6)),
        (
            'cuboid label="cat" xtl1="1" ytl1="2" xbl1="1" ybl1="9" xtr1="8" ytr1="2" '
            'xbr1="8" ybr1="9" xtl2="3" ytl2="1" xbl2="3" ybl2="8" xtr2="11" ytr2="1" '
            'xbr2="11" ybr2="8"',
            (1, 1, 10, 8),
        ),
    ],
)  # fmt: skip
def test_shapes_are_replaced_by_the_boxes_around_them(tmp_path, shape, box):
    annotated = read(tmp_path, in_image(f"<{shape}/>"))
    (item,) = annotated.images[0].objects
    assert item.box_xywh == pytest.approx(box)
    (event,) = annotated.events
    assert event.kind == "shapes stored as the boxes around them"
    assert event.location == "annotations.xml, a.jpg, shape 1"
    assert event.image == "a.jpg"


def test_points_lines_and_skeletons_are_dropped_and_tags_are_no_shapes(tmp_path):
    points = (
        '<points label="cat" points="1,2"/><polyline label="cat" points="1,2;3,4"/>'
    )
    skeleton = '<skeleton label="cat"><points label="x" points="1,2"/></skeleton>'
    annotated = read(tmp_path, in_image(points, skeleton, '<tag label="x"/>', BOX))
    assert len(annotated.images[0].objects) == 1
    assert [f.detail for f in annotated.events] == ["points", "polyline", "skeleton"]
    assert {f.kind for f in annotated.events} == {
        "shapes that enclose nothing, dropped"
    }


def test_labels_of_the_task_are_the_classes_if_they_have_boxes(tmp_path):
    labels = (
        "<meta><task><labels><label><name>dog</name><type>rectangle</type></label>"
        "<label><name>cat</name></label><label><name>x</name><type>tag</type></label>"
        "<label><name>tail</name><parent>dog</parent></label></labels></task></meta>"
    )
    text = in_image(BOX).replace("<annotations>", f"<annotations>{labels}")
    annotated = read(tmp_path, text)
    assert [c["name"] for c in annotated.categories] == ["dog", "cat"]


def test_a_box_is_in_the_frames_where_its_track_is_not_outside(tmp_path):
    text = of_video(
        track((0, False), (1, False), (2, True)), track((1, False), label="dog")
    )
    annotated = read(tmp_path, text, frame_names(4))
    assert [[o.box_xywh[0] for o in i.objects] for i in annotated.images] == [
        [0],
        [1, 1],
        [],
        [],
    ]
    assert [c["name"] for c in annotated.categories] == ["cat", "dog"]
    assert annotated.events == ()


def test_frames_without_image_are_counted_as_missing(tmp_path):
    text = of_video(track((0, False), (1, False), (2, True)))
    annotated = read(tmp_path, text, frame_names(1))
    names = [image.file_name for image in annotated.images]
    assert names == ["frame_000000.png", "frame_000001.png"]


def test_a_file_of_keyframes_only_is_an_error(tmp_path):
    text = of_video(track((0, False), (3, False)))
    with pytest.raises(ValueError, match=r"frame 0 and then 3.* frame 1: .*keyframes"):
        read(tmp_path, text, frame_names(4))


def test_a_task_of_every_third_frame_has_no_gaps(tmp_path):
    text = of_video(track((0, False), (3, False), (6, True), (9, False)))
    annotated = read(tmp_path, text, [frame_names(10)[n] for n in (0, 3, 6, 9)])
    assert [len(image.objects) for image in annotated.images] == [1, 1, 0, 1]


def test_a_video_needs_images_named_by_frames(tmp_path):
    with pytest.raises(ValueError, match=r"called frame_000000\.png.*CVAT for images"):
        read(tmp_path, of_video(track((0, False))))
    annotation_files.draw(tmp_path / "other", annotation_files.IMAGES)
    with pytest.raises(ValueError, match="are both frame 0"):
        read(
            tmp_path,
            of_video(track((0, False))),
            ["frame_000000.png", "b/frame_000000.jpg"],
        )


def test_an_export_of_a_video_is_read(tmp_path):
    images = [
        p._replace(name=name)
        for p, name in zip(annotation_files.IMAGES, frame_names(3), strict=True)
    ]
    path = tool_exports.cvat_video(tmp_path, images, annotation_files.NAMES)
    text = path.read_text("utf-8")
    annotated = read(tmp_path, text, frame_names(3))
    assert [len(image.objects) for image in annotated.images] == [1, 2, 1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<annotation/>", "begins with <annotation>"),
        ("<annotations/>", "has no <image> and no <track>"),
        ("<annotations>", ": not XML, or cut off: no element found"),
        ("<annotations><image/></annotations>", "image 1 has no name"),
        (in_image(BOX).replace('"64"', '"wide"', 1), "expected a number, got 'wide'"),
        (in_image(BOX).replace("xtl", "left"), "a.jpg, shape 1 lacks xtl"),
        (in_image(BOX).replace('"10"', '"ten"'), "expected a number, got 'ten'"),
        (in_image('<polygon label="a" points="1,2;3"/>'), "points that are not x,y"),
        (in_image('<polygon label="a" points="1,2;3,x"/>'), "a number, got 'x'"),
        (in_image('<polygon label="a" points="1,2;3,4"/>'), "polygon of 2 points"),
        (in_image('<polygon label="a"/>'), "points that are not x,y"),
        (in_image(BOX.replace('"cat"', '""')), "1 of 1 boxes have no class"),
        (of_video(track((-1, False))), "has the frame '-1'; expected a number"),
    ],
)  # fmt: skip
def test_another_structure_is_an_error_with_its_location(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        read(tmp_path, text, ["a.jpg", "frame_000000.png"])
