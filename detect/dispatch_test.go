package detect

import (
	"encoding/hex"
	"slices"
	"testing"

	"vmscope/mem"
)

func TestBranches(t *testing.T) {
	const at mem.VA = 0xffffffff81000000
	for _, c := range []struct {
		name, code string
		want       []branch
	}{
		{"none", "f30f1efa 31c0 c3 cc", nil},
		{"within", "7402 31c0 31c0 c3", nil},
		{"to its end", "eb01 c3", []branch{{0, 2, at + 3}}},
		{"far", "f30f1efa e8f7ffff00 0f84fa000000 e900000080", []branch{{4, 5, at + 0x1000000}, {9, 6, at + 0x109}, {15, 5, at + 20 - 0x80000000}}},
		{"behind no instruction", "eb7f 06 eb7f", []branch{{0, 2, at + 0x81}}},
		{"cut", "eb7f e900", []branch{{0, 2, at + 0x81}}},
	} {
		b, err := hex.DecodeString(string(slices.DeleteFunc([]byte(c.code), func(c byte) bool { return c == ' ' })))
		if err != nil {
			t.Fatal(err)
		}
		if got := branches(b, at); !slices.Equal(got, c.want) {
			t.Errorf("%s: %+v, want %+v", c.name, got, c.want)
		}
	}
}
