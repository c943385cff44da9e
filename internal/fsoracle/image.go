package fsoracle

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
)

// The format of dm-log-writes (Documentation/admin-guide/device-mapper/log-writes.rst), read here once more: what is
// judged by recordings must not be what reads them.
const (
	logMagic    = 0x6a736677736872
	logSector   = 512
	logDiscard  = 4
	diskSectors = 512
)

// Entries is how many entries the log has.
func (r *Recording) Entries() (uint64, error) {
	if len(r.Log) < logSector || binary.LittleEndian.Uint64(r.Log) != logMagic || binary.LittleEndian.Uint32(r.Log[24:]) != logSector {
		return 0, errors.New("fsoracle: the recording has no log of writes in sectors of 512 bytes")
	}
	return binary.LittleEndian.Uint64(r.Log[16:]), nil
}

// Image is the disk after so many entries of the log: what a guest leaves that loses its power there.
func (r *Recording) Image(entries uint64) ([]byte, error) {
	image, _, err := r.play(entries)
	return image, err
}

// From is the recording from an entry on: of somebody who comes when the guest has been at work for a while.
func (r *Recording) From(entry uint64) (*Recording, error) {
	image, rest, err := r.play(entry)
	if err != nil {
		return nil, err
	}
	total, err := r.Entries()
	if err != nil {
		return nil, err
	}
	from := &Recording{Meta: r.Meta, Base: image, Log: slices.Concat(r.Log[:logSector], rest)}
	binary.LittleEndian.PutUint64(from.Log[16:], total-entry)
	for _, p := range r.Points {
		if p.Entries >= entry {
			p.Entries -= entry
			from.Points = append(from.Points, p)
		}
	}
	return from, nil
}

// play gives the disk after so many entries, and what of the log is behind them.
func (r *Recording) play(entries uint64) (image, rest []byte, err error) {
	total, err := r.Entries()
	if err != nil {
		return nil, nil, err
	}
	if entries > total {
		return nil, nil, fmt.Errorf("fsoracle: entry %d of %d", entries, total)
	}
	image, rest = slices.Clone(r.Base), r.Log[logSector:]
	for n := range entries {
		if len(rest) < logSector {
			return nil, nil, fmt.Errorf("fsoracle: the log ends at entry %d", n)
		}
		sector, count, flags := binary.LittleEndian.Uint64(rest), binary.LittleEndian.Uint64(rest[8:]), binary.LittleEndian.Uint64(rest[16:])
		rest = rest[logSector:]
		if size := uint64(len(image)) / diskSectors; sector > size || count > size-sector {
			return nil, nil, fmt.Errorf("fsoracle: entry %d writes %d sectors at %d", n, count, sector)
		}
		to := image[sector*diskSectors : (sector+count)*diskSectors]
		if flags&logDiscard != 0 {
			clear(to)
			continue
		}
		if len(rest) < len(to) {
			return nil, nil, fmt.Errorf("fsoracle: the log ends in entry %d", n)
		}
		copy(to, rest)
		rest = rest[len(to):]
	}
	return image, rest, nil
}
