package tap

import (
	"context"
	"slices"
)

// Plugged lists the disks of a running machine (a target as of Attach) as Disks does, and which of them are not among those
// that are known: it has got them since. These bear the first names that are free, as Linux has it, where those that are
// known keep theirs.
func Plugged(ctx context.Context, target string, known []Disk) (now, came []Disk, err error) {
	if now, err = Disks(ctx, target); err != nil {
		return nil, nil, err
	}
	// An old -drive without a device is none of the guest's: not yet, or not any more.
	now = slices.DeleteFunc(now, func(d Disk) bool { return d.QDev == "" && !slices.ContainsFunc(known, d.Same) })
	return now, renamed(now, known), nil
}

// renamed gives disks that are known the names that they had, and the others such as are free then; it gives these.
func renamed(now, known []Disk) (came []Disk) {
	taken := map[string]bool{}
	is := make([]bool, len(now))
	for i := range now {
		d := &now[i]
		if k := slices.IndexFunc(known, d.Same); k >= 0 {
			d.Name, is[i] = known[k].Name, true
			taken[d.Name] = true
		}
	}
	for i := range now {
		if d := &now[i]; !is[i] {
			d.Name = d.kind.name(taken)
			came = append(came, *d)
		}
	}
	return came
}

// Same says whether two are one disk.
func (d Disk) Same(o Disk) bool { return d.QDev == o.QDev && d.Node == o.Node }
