package part

import (
	"fmt"
	"slices"
	"strings"

	"vmscope/block"
)

// maxIdentified bounds how many volumes are looked into; more are listed.
const maxIdentified = 1024

// groups builds the logical volumes of all volume groups of which a physical
// volume was found.
func (s *scanner) groups() {
	type found struct {
		pv       *physical
		name     string
		vg       *section
		sequence int64
	}
	byID := map[string]found{}
	var order []string
	for i := range s.pvs {
		pv := &s.pvs[i]
		if pv.text == nil {
			continue
		}
		top, err := parseLVMText(pv.text)
		if err != nil {
			s.problem(pv.disk, fmt.Errorf("physical volume %s: %w", pv.uuid, err))
			continue
		}
		for _, name := range top.keys {
			vg := top.section(name)
			if vg == nil {
				continue
			}
			id, seq := vg.text("id"), vg.number("seqno")
			old, ok := byID[id]
			if !ok {
				order = append(order, id)
			}
			// All copies of a group are the same, but for those that missed a change.
			if !ok || seq > old.sequence {
				byID[id] = found{pv, name, vg, seq}
			}
			break // a text holds one group
		}
	}
	for _, id := range order {
		if s.ctx.Err() != nil {
			return
		}
		f := byID[id]
		if err := s.group(f.name, f.vg, f.pv.disk); err != nil {
			s.problem(f.pv.disk, fmt.Errorf("volume group %q: %w", f.name, err))
		}
	}
}

// lvmName reports whether LVM takes a name.
func lvmName(name string) bool {
	if name == "" || len(name) > 127 || name == "." || name == ".." || name[0] == '-' {
		return false
	}
	for i := range len(name) {
		if !isWord(name[i]) || name[i] == '/' || name[i] == '@' {
			return false
		}
	}
	return true
}

// source is a physical volume as a group knows it.
type source struct {
	disk  int   // -1: not there
	start int64 // of extent 0 on the disk
	count int64 // extents
}

// volumeGroup is one group while its volumes are built.
type volumeGroup struct {
	Group
	sources map[string]source
}

// group builds the volumes of one group.
func (s *scanner) group(name string, vg *section, disk int) error {
	g := volumeGroup{Group: Group{Name: name, UUID: vg.text("id"), Sequence: uint64(max(vg.number("seqno"), 0))}, sources: map[string]source{}}
	size := vg.number("extent_size") // sectors
	switch {
	case !lvmName(name):
		return inconsistent("no name for a group")
	case size <= 0 || size > 1<<40:
		return inconsistent("extents of %d sectors", size)
	}
	g.Extent = size * lvmSector
	pvs := vg.section("physical_volumes")
	if pvs == nil {
		pvs = &section{}
	}
	for _, key := range pvs.keys {
		if pv := pvs.section(key); pv != nil {
			g.sources[key] = s.source(&g, pv)
		}
	}
	lvs := vg.section("logical_volumes")
	if lvs == nil {
		lvs = &section{}
	}
	// A snapshot bears the name of the volume that keeps what was overwritten; what is visible in the text is a volume of
	// LVM's own, which joins that to its origin.
	snapshots := map[string]*section{}
	for _, key := range lvs.keys {
		if seg := snapshot(lvs.section(key)); seg != nil {
			snapshots[seg.text("cow_store")] = seg
		}
	}
	for _, key := range lvs.keys {
		lv := lvs.section(key)
		if lv == nil || snapshot(lv) != nil || !lv.has("status", "VISIBLE") && snapshots[key] == nil {
			continue
		}
		if !lvmName(key) {
			s.problem(disk, inconsistent("volume group %s: no name for a volume: %q", name, key))
			continue
		}
		v := Volume{Name: name + "/" + key, Kind: Logical, Disk: -1, LVUUID: lv.text("id")}
		if err := g.fill(&v, lv); err != nil {
			s.problem(disk, fmt.Errorf("%s: %w", v.Name, err))
			v.Segments, v.Unmapped = nil, "its metadata contradict themselves"
		}
		if seg := snapshots[key]; seg != nil {
			v.Segments, v.Unmapped = nil, "snapshot"
			if n := seg.number("extent_count"); n > 0 && n < 1<<60/g.Extent {
				v.Size = n * g.Extent
			}
		}
		s.identifyLogical(&v, disk)
		g.Volumes = append(g.Volumes, v.Name)
		s.layout.Volumes = append(s.layout.Volumes, v)
	}
	s.layout.Groups = append(s.layout.Groups, g.Group)
	return nil
}

// snapshot gives the segment of a volume that makes a snapshot; nil if it is none.
func snapshot(lv *section) *section {
	if lv == nil {
		return nil
	}
	if seg := lv.section("segment1"); seg != nil && seg.text("type") == "snapshot" {
		return seg
	}
	return nil
}

// source finds one of the group's physical volumes on the disks.
func (s *scanner) source(g *volumeGroup, pv *section) source {
	id := pv.text("id")
	start, count := pv.number("pe_start"), pv.number("pe_count")
	i := slices.IndexFunc(s.pvs, func(p physical) bool { return p.uuid == id })
	if i < 0 {
		g.Missing = append(g.Missing, id)
		return source{disk: -1}
	}
	p := &s.pvs[i]
	if start < 0 || count < 0 || start > p.size/lvmSector || count > (p.size-start*lvmSector)/g.Extent {
		s.problem(p.disk, inconsistent("physical volume %s: %d extents of %d bytes from sector %d on, of %d bytes", id, count, g.Extent, start, p.size))
		return source{disk: -1}
	}
	return source{p.disk, p.off + start*lvmSector, count}
}

// fill finds out where a logical volume lies.
func (g *volumeGroup) fill(v *Volume, lv *section) error {
	n := lv.number("segment_count")
	if n <= 0 || n > int64(len(lv.keys)) {
		return inconsistent("%d segments", n)
	}
	var size int64 // extents
	missing := false
	for i := range n {
		seg := lv.section(fmt.Sprintf("segment%d", i+1))
		if seg == nil {
			return inconsistent("no segment %d", i+1)
		}
		start, count := seg.number("start_extent"), seg.number("extent_count")
		if start != size || count <= 0 || count > 1<<60/g.Extent-size {
			return inconsistent("segment %d: %d extents from %d on, not from %d", i+1, count, start, size)
		}
		size += count
		out := block.Segment{Start: start * g.Extent, Len: count * g.Extent}
		switch typ := seg.text("type"); typ {
		case "striped", "linear":
			here, err := g.stripes(&out, seg, count)
			if err != nil {
				return fmt.Errorf("segment %d: %w", i+1, err)
			}
			missing = missing || !here
		case "zero":
		case "error":
			out.Legs = []block.Leg{{Disk: -1}}
		default:
			if v.Unmapped == "" && typ != "" {
				v.Unmapped = typ
			}
		}
		v.Segments = append(v.Segments, out)
	}
	v.Size = size * g.Extent
	switch {
	case v.Unmapped != "":
		v.Segments = nil
		return nil
	case missing:
		v.Unmapped = "a physical volume is missing"
	}
	_, err := block.NewMap(v.Segments)
	if err != nil {
		return inconsistent("%v", err)
	}
	return nil
}

// stripes finds the legs of a segment, and tells whether all are there.
func (g *volumeGroup) stripes(out *block.Segment, seg *section, count int64) (bool, error) {
	list := seg.list("stripes")
	n := seg.number("stripe_count")
	if n <= 0 || n != int64(len(list))/2 || len(list)%2 != 0 || count%n != 0 {
		return false, inconsistent("%d extents on %d stripes, of which %d are told", count, n, len(list)/2)
	}
	if n > 1 {
		stripe := seg.number("stripe_size") // sectors
		if stripe <= 0 || stripe > g.Extent/lvmSector || g.Extent/lvmSector%stripe != 0 {
			return false, inconsistent("stripes of %d sectors", stripe)
		}
		out.Stripe = stripe * lvmSector
	}
	here := true
	for i := 0; i < len(list); i += 2 {
		name, _ := list[i].(string)
		first, ok := list[i+1].(int64)
		src, known := g.sources[name]
		switch {
		case !known || !ok || first < 0:
			return false, inconsistent("stripe on %q", name)
		case src.disk < 0:
			here = false
			out.Legs = append(out.Legs, block.Leg{Disk: -1})
			continue
		case first > src.count || count/n > src.count-first:
			return false, inconsistent("%d extents from %d on %q, which has %d", count/n, first, name, src.count)
		}
		out.Legs = append(out.Legs, block.Leg{Disk: src.disk, Off: src.start + first*g.Extent})
	}
	return here, nil
}

// identifyLogical looks into a logical volume that can be read.
func (s *scanner) identifyLogical(v *Volume, disk int) {
	v.Type = Unknown
	if v.Segments == nil || len(s.layout.Volumes) >= maxIdentified || s.ctx.Err() != nil {
		return
	}
	dev, err := s.layout.Open(v)
	if err == nil {
		v.Content, err = Identify(dev)
	}
	if err != nil && !strings.Contains(v.Unmapped, "missing") {
		s.problem(disk, fmt.Errorf("%s: %w", v.Name, err))
	}
	s.stalePlaces(v)
}
