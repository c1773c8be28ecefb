package antiphon

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"math/big"
	"reflect"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"antiphon.dev/antiphon/options/v1"
	antiphonv1 "antiphon.dev/antiphon/v1"
)

type base struct {
	ID string `json:"id"`
}

type tree struct {
	Children []tree `json:"children"`
}

type everything struct {
	base
	Name   string          `json:"name" description:"Who." labels:"pii,secret"`
	Mood   string          `json:"mood,omitempty" enum:"good,bad"`
	Count  int             `json:"count,omitempty"`
	Small  uint8           `json:"small"`
	Share  float64         `json:"share"`
	On     bool            `json:"on"`
	Data   []byte          `json:"data"`
	When   time.Time       `json:"when"`
	Maybe  *int            `json:"maybe"`
	Tags   []string        `json:"tags"`
	Pair   [2]int          `json:"pair"`
	By     map[string]int  `json:"by"`
	Any    any             `json:"any"`
	Raw    json.RawMessage `json:"raw"`
	Tree   tree            `json:"tree"`
	Hidden string          `json:"-"`
}

func TestTheSchemaOfATypeIsItsShape(t *testing.T) {
	for _, one := range []struct {
		kind reflect.Type
		want string
	}{
		{reflect.TypeFor[any](), ""},
		{reflect.TypeFor[int](), `{"type":"integer"}`},
		{reflect.TypeFor[int8](), `{"maximum":127,"minimum":-128,"type":"integer"}`},
		{reflect.TypeFor[uint64](), `{"minimum":0,"type":"integer"}`},
		{reflect.TypeFor[*string](), `{"anyOf":[{"type":"string"},{"type":"null"}]}`},
		{reflect.TypeFor[[]any](), `{"type":"array"}`},
		{reflect.TypeFor[map[string]bool](), `{"additionalProperties":{"type":"boolean"},"type":"object"}`},
		{reflect.TypeFor[tree](), `{"$defs":{"tree":{"properties":{"children":{"items":{"$ref":"#/$defs/tree"},"type":"array"}},"required":["children"],"type":"object"}},"$ref":"#/$defs/tree"}`},
		{reflect.TypeFor[everything](), `{"$defs":{"tree":{"properties":{"children":{"items":{"$ref":"#/$defs/tree"},"type":"array"}},"required":["children"],"type":"object"}},"properties":{"any":{},"by":{"additionalProperties":{"type":"integer"},"type":"object"},"count":{"type":"integer"},"data":{"contentEncoding":"base64","type":"string"},"id":{"type":"string"},"maybe":{"anyOf":[{"type":"integer"},{"type":"null"}]},"mood":{"enum":["good","bad"]},"name":{"description":"Who.","type":"string","x-antiphon-labels":["pii","secret"]},"on":{"type":"boolean"},"pair":{"items":{"type":"integer"},"maxItems":2,"minItems":2,"type":"array"},"raw":{},"share":{"type":"number"},"small":{"maximum":255,"minimum":0,"type":"integer"},"tags":{"items":{"type":"string"},"type":"array"},"tree":{"$ref":"#/$defs/tree"},"when":{"format":"date-time","type":"string"}},"required":["id","name","small","share","on","data","when","maybe","tags","pair","by","any","raw","tree"],"type":"object"}`},
	} {
		if _, got, err := shapeOf(one.kind); err != nil || got != one.want {
			t.Errorf("%s: %v\n got %s\nwant %s", one.kind, err, got, one.want)
		}
	}
}

func TestWhatCannotTravelIsRefusedByName(t *testing.T) {
	for _, kind := range []reflect.Type{
		reflect.TypeFor[grade](), reflect.TypeFor[[]*mark](), // nobody could read them
		reflect.TypeFor[chan int](), reflect.TypeFor[func()](), reflect.TypeFor[map[int]string](), reflect.TypeFor[complex128](),
		reflect.TypeFor[struct {
			A int `json:"a,string"`
		}](),
		reflect.TypeFor[struct {
			base
			Other int `json:"id"`
		}](),
		reflect.TypeFor[struct {
			A int `enum:"a"`
		}](),
		reflect.TypeFor[struct {
			A string `labels:"Not One"`
		}](),
	} {
		if _, text, err := shapeOf(kind); err == nil {
			t.Errorf("%s has the schema %s", kind, text)
		}
	}
}

func TestValuesComeBackAsTheyWent(t *testing.T) {
	seven := 7
	value := everything{
		base: base{"x"}, Name: "Ada <&> \u2028", Mood: "bad", Count: -3, Small: 255, Share: 0.1, On: true, Data: []byte{0, 255},
		When: time.Date(2026, 3, 1, 12, 0, 0, 5, time.UTC), Maybe: &seven, Tags: []string{"a"}, Pair: [2]int{1, 2},
		By: map[string]int{"b": 2, "a": 1}, Any: map[string]any{"k": []any{nil, 1.5}}, Raw: json.RawMessage(`{"r":1}`),
		Tree: tree{[]tree{{[]tree{}}}},
	}
	payload, err := encode(value, inlineLimit)
	if err != nil {
		t.Fatal(err)
	}
	got, err := Decode[everything](payload)
	if err != nil || !reflect.DeepEqual(got, value) {
		t.Errorf("%v\n got %+v\nwant %+v", err, got, value)
	}
	var library everything
	if err := json.Unmarshal(payload.GetInline(), &library); err != nil || !reflect.DeepEqual(library, value) {
		t.Errorf("encoding/json reads it otherwise: %v %+v", err, library)
	}
}

// money is written the usual way, with methods of its pointer.
type money struct{ cents int64 }

func (m *money) MarshalJSON() ([]byte, error) {
	return json.Marshal(fmt.Sprintf("%d.%02d", m.cents/100, m.cents%100))
}

func (m *money) UnmarshalJSON(text []byte) error {
	var whole int64
	_, err := fmt.Sscanf(string(text), `"%d.%d"`, &whole, &m.cents)
	m.cents += whole * 100
	return err
}

// grade and mark only write themselves.
type grade struct{ letter byte }

func (g grade) MarshalJSON() ([]byte, error) { return json.Marshal(string(g.letter)) }

type mark struct{ letter byte }

func (m *mark) MarshalText() ([]byte, error) { return []byte{m.letter}, nil }

func TestATypeThatWritesItselfTravelsAsItDoes(t *testing.T) {
	type bill struct {
		Total *big.Int         `json:"total"`
		Price money            `json:"price"`
		Tip   *money           `json:"tip"`
		Parts []money          `json:"parts"`
		By    map[string]money `json:"by"`
		Ratio big.Rat          `json:"ratio"`
	}
	value := bill{
		big.NewInt(1250), money{1250}, &money{75}, []money{{5}}, map[string]money{"a": {1}}, *big.NewRat(1, 3),
	}
	payload, err := encode(value, inlineLimit)
	want := `{"total":1250,"price":"12.50","tip":"0.75","parts":["0.05"],"by":{"a":"0.01"},"ratio":"1/3"}`
	if err != nil || string(payload.GetInline()) != want {
		t.Fatalf("%v\n got %s\nwant %s", err, payload.GetInline(), want)
	}
	if got, err := Decode[bill](payload); err != nil || got.Total.Cmp(value.Total) != 0 || *got.Tip != *value.Tip || got.By["a"] != value.By["a"] {
		t.Error(got, err)
	}
	if got := JSON(money{1250}); got != `"12.50"` {
		t.Error(got)
	}
}

func TestWhatIsEmptyIsWrittenAsItsSchemaSays(t *testing.T) {
	for _, one := range []struct {
		value any
		want  string
	}{
		{[]string(nil), "[]"}, {map[string]int(nil), "{}"}, {(*int)(nil), "null"}, {nil, "null"}, {(*Payload)(nil), "null"},
		{struct {
			A []int     `json:"a"`
			B []int     `json:"b,omitempty"`
			C time.Time `json:"c,omitzero"`
		}{}, `{"a":[]}`},
	} {
		if got, err := encodeJSON(one.value); err != nil || string(got) != one.want {
			t.Errorf("%T: %s, %v", one.value, got, err)
		}
	}
}

func TestAMismatchNamesItsPlace(t *testing.T) {
	type deep struct {
		Rows []map[string]struct {
			N uint8 `json:"n"`
		} `json:"rows"`
	}
	for _, one := range []struct{ text, field, message string }{
		{`{"rows":[{},{"a/b~":{"n":256}}]}`, "/rows/1/a~1b~0/n", "expected an integer that fits uint8"},
		{`{"rows":[{},{"a":{"n":1.5}}]}`, "/rows/1/a/n", "expected an integer, got a number"},
		{`{"rows":[{},{"a":{}}]}`, "/rows/1/a", "the field 'n' is missing"},
		{`{"rows":null}`, "/rows", "expected an array, got null"},
		{`{"Rows":[]}`, "", "the field 'rows' is missing"},
		{`[]`, "", "expected an object, got an array"},
	} {
		_, err := Decode[deep](inline([]byte(one.text)))
		var failure *Failure
		if !errors.As(err, &failure) || failure.Field != one.field || failure.Message != one.message {
			t.Errorf("%s: %+v", one.text, failure)
		}
	}
	if got, err := Decode[deep](inline([]byte(`{"rows":[{"a":{"n":2.0}}],"more":1}`))); err != nil || got.Rows[0]["a"].N != 2 {
		t.Error(got, err)
	}
	if _, err := encodeJSON([]float64{0, math.NaN()}); err == nil || !errors.As(err, new(*Failure)) {
		t.Error(err)
	}
	for _, payload := range []*Payload{
		{MediaType: "text/plain", Content: &antiphonv1.Payload_Inline{Inline: []byte("1")}},
		{Content: &antiphonv1.Payload_Blob{Blob: &antiphonv1.BlobReference{Digest: "d", Size: 1}}},
	} {
		if _, err := Decode[int](payload); err == nil {
			t.Error(payload)
		}
	}
	if null, err := Decode[*int](&Payload{MediaType: "application/json; charset=utf-8"}); err != nil || null != nil {
		t.Error(null, err)
	}
}

func FuzzNoBytesArePanickedOver(f *testing.F) {
	f.Add([]byte(`{"id":"","name":1e999,"children":[[]]}`))
	f.Add([]byte(`"\ud800"`))
	f.Add([]byte(`[1e400, -0, 123456789012345678901234567890]`))
	f.Fuzz(func(t *testing.T, data []byte) {
		payload := inline(data)
		Decode[everything](payload)
		Decode[tree](payload)
		if value, err := Decode[any](payload); err == nil {
			again, err := encodeJSON(value)
			if err != nil || !json.Valid(again) {
				t.Errorf("%q: %s, %v", data, again, err)
			}
		}
	})
}

func TestTheTableOfReasonsIsThatOfTheContracts(t *testing.T) {
	values := antiphonv1.ErrorReason(0).Descriptor().Values()
	for number := 1; number < values.Len(); number++ {
		value := values.Get(number)
		reason := Reason(string(value.Name())[len(reasonPrefix):])
		said := proto.GetExtension(value.Options(), optionsv1.E_Error).(*optionsv1.ErrorSpec)
		spec, known := registry[reason]
		if !known || int32(spec.code) != said.GetCode() || "REMEDY_"+string(spec.remedy) != said.GetRemedy().String() {
			t.Errorf("%s: %+v, the contracts say %v", reason, spec, said)
		}
	}
	if len(registry) != values.Len()-1 {
		t.Error(fmt.Sprint(len(registry), " reasons, the contracts have ", values.Len()-1))
	}
}
