package jbd2

import (
	"encoding/binary"
	"errors"
	"testing"

	"vmscope/mem"
)

func TestParseSuperRefuses(t *testing.T) {
	inconsistent, unsupported := mem.ErrInconsistent, errors.ErrUnsupported
	tests := []struct {
		name   string
		change func(sb *Super)
		want   error
	}{
		{"as it is", func(*Super) {}, nil},
		{"block size 512", func(sb *Super) { sb.BlockSize = 512 << 8 }, inconsistent},
		{"block size 3000", func(sb *Super) { sb.BlockSize = 3000 }, inconsistent},
		{"first 0", func(sb *Super) { sb.First = 0 }, inconsistent},
		{"first behind the end", func(sb *Super) { sb.First = sb.MaxLen }, inconsistent},
		{"start before first", func(sb *Super) { sb.First, sb.Start = 5, 4 }, inconsistent},
		{"start behind the end", func(sb *Super) { sb.Start = sb.MaxLen }, inconsistent},
		{"unknown feature", func(sb *Super) { sb.Incompat |= 0x40 }, unsupported},
		{"unknown read-only feature", func(sb *Super) { sb.ROCompat = 1 }, unsupported},
		{"v2 and v3", func(sb *Super) { sb.Incompat |= IncompatCsumV2 | IncompatCsumV3 }, inconsistent},
		{"v1 and v3", func(sb *Super) { sb.Compat = CompatChecksum; sb.Incompat |= IncompatCsumV3 }, inconsistent},
		{"unknown checksum", func(sb *Super) { sb.Incompat |= IncompatCsumV3; sb.ChecksumType = 1 }, unsupported},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			sb := newJournal(4096, 2000, 0, 0).sb
			tt.change(&sb)
			b := make([]byte, 1<<20)
			copy(b, encodeSuper(&sb))
			got, err := ParseSuper(b)
			if (got == nil) != (err != nil) {
				t.Fatalf("%v beside %v", got, err)
			}
			if !errors.Is(err, tt.want) || err == nil != (tt.want == nil) {
				t.Fatalf("%v, want %v", err, tt.want)
			}
			if err == nil && *got != sb {
				t.Fatalf("%+v, want %+v", *got, sb)
			}
		})
	}
}

func TestParseSuperVersion1(t *testing.T) {
	sb := newJournal(1024, 50, CompatChecksum, IncompatRevoke|Incompat64Bit).sb
	b := encodeSuper(&sb)
	binary.BigEndian.PutUint32(b[4:], 3)
	got, err := ParseSuper(b)
	if err != nil || got.Version != 1 || got.Incompat != 0 || got.Compat != 0 || got.Format() != (Format{BlockSize: 1024}) {
		t.Errorf("%+v, %v", got, err)
	}
	for _, kind := range []uint32{0, 1, 2, 5, 6} {
		binary.BigEndian.PutUint32(b[4:], kind)
		if _, err := ParseSuper(b); err == nil {
			t.Errorf("type %d is taken", kind)
		}
	}
	if _, err := ParseSuper(b[:1023]); err == nil {
		t.Error("a short superblock is taken")
	}
}

func TestCheck(t *testing.T) {
	sb := newJournal(1024, 50, 0, 0).sb
	for _, tt := range []struct {
		size   uint32
		blocks uint64
		ok     bool
	}{{1024, 51, true}, {1024, 1 << 40, true}, {1024, 50, false}, {2048, 51, false}} {
		if err := sb.Check(tt.size, tt.blocks); (err == nil) != tt.ok {
			t.Errorf("%d blocks of %d: %v", tt.blocks, tt.size, err)
		}
	}
}

func TestFastCommitArea(t *testing.T) {
	for _, tt := range []struct {
		incompat, blocks, maxLen uint32
		logEnd, first, end       uint32
	}{
		{0, 100, 4096, 4096, 4096, 4096},
		{IncompatFastCommit, 0, 4096, 3840, 3841, 4096},
		{IncompatFastCommit, 100, 4096, 3996, 3997, 4096},
		{IncompatFastCommit, 256, 1279, 1279, 1279, 1279}, // too short for both
		{IncompatFastCommit, 256, 1280, 1024, 1025, 1280},
		{IncompatFastCommit, 1 << 31, 4096, 4096, 4096, 4096},
	} {
		sb := Super{MaxLen: tt.maxLen, Incompat: tt.incompat, FCBlocks: tt.blocks}
		first, end := sb.FastCommits()
		if sb.LogEnd() != tt.logEnd || first != tt.first || end != tt.end {
			t.Errorf("%+v: log to %d, fast commits %d to %d", tt, sb.LogEnd(), first, end)
		}
	}
}

func TestTagSize(t *testing.T) {
	for _, tt := range []struct {
		f    Format
		want int
	}{
		{Format{}, 8},
		{Format{Wide: true}, 12},
		{Format{Csum: 1, Wide: true}, 12},
		{Format{Csum: 2}, 10},
		{Format{Csum: 2, Wide: true}, 14},
		{Format{Csum: 3}, 16},
		{Format{Csum: 3, Wide: true}, 16},
	} {
		if got := tt.f.TagSize(); got != tt.want {
			t.Errorf("%+v: %d, want %d", tt.f, got, tt.want)
		}
	}
}

func TestCRC32BE(t *testing.T) {
	var w walk
	for _, n := range []int{0, 1, 7, 8, 9, 100, 1024} {
		p := make([]byte, n)
		for i := range p {
			p[i] = byte(i*7 + n)
		}
		if got, want := w.crcBE(0x12345678, p), crcBytes(0x12345678, p); got != want {
			t.Errorf("%d bytes: %#x, want %#x", n, got, want)
		}
	}
}
