package dump

import (
	"bytes"
	"encoding/binary"
	"errors"
	"strings"
	"testing"

	"vmscope/mem"
	"vmscope/vm"
	"vmscope/vm/vmtest"
)

// makeQcow writes a qcow2 image of version 3 with clusters of 4096 bytes and a
// snapshot that has a stream, byte by byte as docs/interop/qcow2.txt describes
// it. The disk takes one entry of the first level and a bit; clusters of zeros
// are left out in one of two ways.
func makeQcow(stream []byte) []byte {
	const cluster, each = 4096, 512
	be := binary.BigEndian
	disk := uint64(each*cluster + 1)
	count := (len(stream) + cluster - 1) / cluster
	tables := (count + each - 1) / each
	out := make([]byte, (3+tables)*cluster) // header, list of snapshots, first level, second
	copy(out, qcowMagic)
	be.PutUint32(out[4:], 3)
	be.PutUint32(out[20:], 12)
	be.PutUint64(out[24:], disk+1000)
	be.PutUint32(out[60:], 2)
	be.PutUint64(out[64:], cluster)
	be.PutUint32(out[100:], 104)
	list := out[cluster:cluster]
	for i, size := range []uint64{0, uint64(len(stream))} { // one of the disk only
		list = be.AppendUint64(list, 2*cluster)
		list = be.AppendUint32(list, uint32(2+tables))
		list = append(list, 0, 1, 0, 4)
		list = be.AppendUint32(be.AppendUint32(list, 1000-uint32(i)), 0) // dates
		list = be.AppendUint64(list, 0)
		list = be.AppendUint32(be.AppendUint32(list, 0), 16)
		list = be.AppendUint64(be.AppendUint64(list, size), disk)
		list = append(list, "1snapABC"...)[:len(list)+5]
		for len(list)%8 != 0 {
			list = append(list, 0)
		}
	}
	for i := range tables {
		be.PutUint64(out[2*cluster+8*(2+i):], uint64(3+i)*cluster|1<<63)
	}
	for i := range count {
		p := make([]byte, cluster)
		copy(p, stream[i*cluster:])
		e := uint64(len(out)) | 1<<63
		switch {
		case !isZero(p):
			out = append(out, p...)
		case i%2 == 0:
			e = 0
		default:
			e = qcowZero
		}
		be.PutUint64(out[3*cluster+8*i:], e)
	}
	return out
}

func TestQcowContract(t *testing.T) {
	data := streamData()
	path := file(t, makeQcow(makeStream(data)))
	vmtest.Run(t, func(t *testing.T) vm.Machine { return open(t, path) }, vmtest.Want{
		Ranges: []mem.Range{{Start: 0, Size: streamRAM}},
		Bytes:  map[mem.PA][]byte{0: make([]byte, 1<<20), 1 << 20: data},
		CPUs:   2,
	})
	m := open(t, path)
	defer m.Close()
	if l := m.(vm.Describer).Info().Layout; l != `q35 (of pc-q35-7.2; snapshot "snap"; to be proved)` {
		t.Errorf("layout %q", l)
	}
}

func TestQcowRefuses(t *testing.T) {
	data := streamData()
	good := makeQcow(makeStream(data))
	with := func(off int, p ...byte) []byte {
		b := bytes.Clone(good)
		copy(b[off:], p)
		return b
	}
	second := 4096 + 64 // of the snapshots
	for name, c := range map[string]struct {
		file []byte
		is   error
		word string
	}{
		"version":        {with(7, 4), ErrFormat, "version 4"},
		"clusters":       {with(23, 22), ErrFormat, "22 bits"},
		"encrypted":      {with(35, 1), ErrFormat, "encrypted"},
		"extended":       {with(79, 16), ErrFormat, "features 0x10"},
		"cut":            {good[:50], ErrTruncated, "header"},
		"no list":        {with(64, 0, 1), ErrTruncated, "snapshot at offset"},
		"many":           {with(60, 1), ErrFormat, "snapshots"},
		"a disk only":    {with(63, 1), ErrFormat, "no snapshot in it has memory"},
		"too much state": {with(second+40, 0, 1), ErrFormat, "of memory behind a disk"},
		"a large table":  {with(second+8, 1), ErrFormat, "entries"},
		"a huge disk":    {with(second+48, 0xff), ErrFormat, "behind a disk"},
		"no table":       {with(second, 0, 1), ErrTruncated, "clusters of snapshot"},
		"compressed":     {with(3*4096, 1<<6), ErrTruncated, "compressed"},
		"one over again": {endlessQcow(1), ErrFormat, "more than 7 clusters"},
		"one table":      {endlessQcow(256), ErrFormat, "more than 7 clusters"},
		"no cluster":     {with(3*4096, 0, 1), ErrTruncated, "EOF"},
	} {
		if m, err := Open(file(t, c.file)); m != nil || !errors.Is(err, c.is) || !strings.Contains(err.Error(), c.word) {
			t.Errorf("%s: %v, %v", name, m, err)
		}
	}
}

// endlessQcow is an image of a few clusters whose stream goes on for tables times 512 MiB: all of it but its beginning is
// one cluster, and all tables but the first are one.
func endlessQcow(tables int) []byte {
	const cluster = 64 << 10
	const each = cluster / 8
	be := binary.BigEndian
	out := make([]byte, 6*cluster) // header and snapshots, first level, second, another, the beginning, the rest
	copy(out, qcowMagic)
	be.PutUint32(out[4:], 2)
	be.PutUint32(out[20:], 16)
	be.PutUint32(out[60:], 1)
	be.PutUint64(out[64:], 1024)
	be.PutUint64(out[1024:], cluster)
	be.PutUint32(out[1024+8:], uint32(tables))
	be.PutUint32(out[1024+36:], 16)
	be.PutUint64(out[1024+40:], uint64(tables)*each*cluster)
	for i := range tables {
		be.PutUint64(out[cluster+8*i:], uint64(min(i, 1)+2)*cluster)
	}
	for i := range 2 * each {
		be.PutUint64(out[2*cluster+8*i:], uint64(min(i, 1)+4)*cluster)
	}
	stream := be.AppendUint32([]byte(streamMagic), 3)
	stream = append(stream, secStart, 0, 0, 0, 2, 3, 'r', 'a', 'm', 0, 0, 0, 0, 0, 0, 0, 4)
	stream = be.AppendUint64(stream, 4096|ramSizes)
	stream = be.AppendUint64(append(append(stream, 6), "pc.ram"...), 4096)
	for len(stream) < 2*cluster { // of which nothing follows
		stream = be.AppendUint64(stream, ramFlush)
	}
	copy(out[4*cluster:], stream)
	return out
}

func FuzzQcow(f *testing.F) {
	f.Add(makeQcow(makeStates()))
	f.Add(makeQcow(makeStream(make([]byte, 8192))))
	f.Fuzz(fuzzOpen)
}
