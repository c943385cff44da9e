package memtest_test

import (
	"testing"

	"vmscope/internal/memtest"
	"vmscope/mem"
)

func TestScriptEnds(t *testing.T) {
	s := &memtest.Script{Answers: []byte{1, 2, 3}}
	var p [2]byte
	if n, err := s.ReadPhys(p[:], 0); n != 2 || err != nil {
		t.Fatal(n, err)
	}
	n, err := s.ReadPhys(p[:], 0x1000)
	if f, ok := err.(*mem.FaultError); n != 1 || !ok || f.Addr != 0x1001 {
		t.Fatal(n, err)
	}
}
