package vmscope

import (
	"context"

	"vmscope/block/tap"
)

func openMachineDisks(ctx context.Context, target string) ([]*Disk, error) {
	looks, err := tap.LookAt(ctx, target)
	if err != nil {
		return nil, err
	}
	var all []*Disk
	for _, l := range looks {
		d := l.Disk
		all = append(all, &Disk{Device: l, Name: d.Name, ID: d.ID, Format: d.Format, File: d.File, ReadOnly: d.ReadOnly, close: l.Close})
	}
	return all, nil
}
